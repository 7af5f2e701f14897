"""The language models, one file each, found by the name in ``llm_config.architectures``.

A file holds::

    ARCHITECTURE    the official class name, for instance "Qwen2ForCausalLM"
    TEMPLATE        name of its chat template
    SIZES           family size -> official llm_config fields
    read_config     official llm_config -> DecoderConfig
    split           one official tensor -> our tensors
    join            our tensors -> the official ones
    NATIVE_FUSED    optional: matrices that the Hugging Face native model keeps in one, by the parts that we have

``split`` and ``join`` only rename and cut or glue rows, so that reading and writing back is exact in every bit.
Shared by all: :func:`base_config` and :func:`read_rope`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

from mini_internvl.model.config import ConfigError, DecoderConfig, RopeConfig, RopeKind


@functools.cache
def backbones() -> dict[str, ModuleType]:
    """Architecture name -> module, for every file in this folder."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in sorted(names)]
    return {module.ARCHITECTURE: module for module in modules}


def find(architecture: str) -> ModuleType:
    """The module of one official architecture; ConfigError names the known ones."""
    if architecture not in backbones():
        raise ConfigError(f'llm_config.architectures[0] is "{architecture}"; known: {", ".join(backbones())}')
    return backbones()[architecture]


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Official ``llm_config`` -> our DecoderConfig, by its architecture."""
    names = raw.get("architectures") or [None]
    return find(names[0]).read_config(raw)


def base_config(raw: Mapping[str, Any], *, architecture: str, **changes: Any) -> DecoderConfig:
    """The fields that all backbones spell alike; ``changes`` gives the rest.

    Raises:
        ConfigError: a field is missing, or the activation is not SiLU.
    """
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if key not in raw:
            raise ConfigError(f'llm_config: the field "{key}" is missing')
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f'llm_config.hidden_act is "{raw["hidden_act"]}"; this family uses silu')
    heads = raw["num_attention_heads"]
    fields: dict[str, Any] = {
        "architecture": architecture,
        "vocab_size": raw["vocab_size"],
        "hidden_size": raw["hidden_size"],
        "intermediate_size": raw["intermediate_size"],
        "layers": raw["num_hidden_layers"],
        "heads": heads,
        "kv_heads": raw.get("num_key_value_heads") or heads,
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
        "norm_eps": raw.get("rms_norm_eps", 1e-6),
        "rope": read_rope(raw),
        "initializer_range": raw.get("initializer_range", 0.02),
    }
    return DecoderConfig(**{**fields, **changes})


def read_rope(raw: Mapping[str, Any]) -> RopeConfig:
    """``rope_theta``, ``rope_scaling`` and the position limits -> RopeConfig.

    Raises:
        ConfigError: an unknown kind, or factor lists of the wrong length.
    """
    limit = raw.get("max_position_embeddings", 32768)
    theta = float(raw.get("rope_theta", 10000.0))
    scaling = raw.get("rope_scaling")
    if not scaling:
        return RopeConfig(theta=theta, max_positions=limit)
    kind = scaling.get("type") or scaling.get("rope_type") or "default"
    if kind in ("su", "longrope"):
        half = raw["hidden_size"] // raw["num_attention_heads"] // 2
        for name in ("short_factor", "long_factor"):
            if len(scaling.get(name, ())) != half:
                raise ConfigError(
                    f"llm_config.rope_scaling.{name} holds {len(scaling.get(name, ()))} numbers, not {half}"
                )
        return RopeConfig(
            theta=theta,
            kind="longrope",
            max_positions=limit,
            original_max_positions=raw.get("original_max_position_embeddings", 4096),
            short_factor=tuple(scaling["short_factor"]),
            long_factor=tuple(scaling["long_factor"]),
        )
    if kind not in ("linear", "dynamic", "default"):
        raise ConfigError(f'llm_config.rope_scaling.type is "{kind}"; known: linear, dynamic, su, longrope')
    return RopeConfig(
        theta=theta, kind=cast(RopeKind, kind), factor=float(scaling.get("factor", 1.0)), max_positions=limit
    )
