"""The language models, one file each, found by the name in ``llm_config.architectures``.

A file holds::

    ARCHITECTURE    the official class name, for instance "Qwen2ForCausalLM"
    TEMPLATE        name of its chat template
    SIZES           family size -> official llm_config fields
    read_config     the fields of the official llm_config -> DecoderConfig
    split           one official tensor -> our tensors
    join            our tensors -> the official ones
    NATIVE_FUSED    optional: matrices that the Hugging Face native model keeps in one, by the parts that we have

``split`` and ``join`` only rename and cut or glue rows, so that reading and writing back is exact in every bit.
Shared by all: :func:`base_config` and :func:`read_rope`.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mini_internvl.model.config import (
    MAX_HEADS,
    MAX_HIDDEN,
    MAX_LAYERS,
    MAX_WIDTH,
    ConfigError,
    DecoderConfig,
    RopeConfig,
    RopeKind,
)
from mini_internvl.model.fields import Fields, agreed

MAX_POSITIONS = 10**9


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


def read_config(raw: Mapping[str, Any] | Fields) -> DecoderConfig:
    """Official ``llm_config`` -> our DecoderConfig, by its architecture."""
    fields = raw if isinstance(raw, Fields) else Fields(raw, "llm_config")
    names = fields.raw.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        fields.refuse("architectures", f"known: {', '.join(backbones())}")
    return find(names[0]).read_config(fields)


def base_config(
    fields: Fields, *, architecture: str, norm_eps: float, max_positions: int, **changes: Any
) -> DecoderConfig:
    """The fields that all backbones spell alike.

    Args:
        fields: the official ``llm_config``.
        architecture: of the backbone.
        norm_eps: what an absent ``rms_norm_eps`` means.
        max_positions: what an absent ``max_position_embeddings`` means.
        changes: the other fields of the DecoderConfig.

    Raises:
        ConfigError: a field is missing or wrong, or the activation is not SiLU.
    """
    fields.text("hidden_act", "silu", known=("silu",), quiet=True)
    width = fields.integer("hidden_size", high=MAX_WIDTH)
    heads = fields.integer("num_attention_heads", high=MAX_HEADS)
    if not fields.has("head_dim") and width % heads:
        raise ConfigError(f"llm_config: hidden_size {width} is no multiple of {heads} heads")
    head_dim = fields.integer("head_dim", width // heads, low=2, high=MAX_WIDTH, quiet=True)
    return DecoderConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size", high=10_000_000),
        hidden_size=width,
        intermediate_size=fields.integer("intermediate_size", high=MAX_HIDDEN),
        layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads, high=MAX_HEADS),
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", norm_eps, high=1.0),
        rope=read_rope(fields, head_dim=head_dim, max_positions=max_positions),
        initializer_range=fields.number("initializer_range", 0.02, high=1e3, quiet=True),
        **changes,
    )


def read_rope(fields: Fields, *, head_dim: int, max_positions: int) -> RopeConfig:
    """The rotary embedding, in both generations of names.

    Up to transformers 4 ``rope_theta`` stood beside ``rope_scaling``; since 5 everything is in ``rope_parameters``.

    Raises:
        ConfigError: an unknown kind, factor lists of the wrong length, or two names with different values.
    """
    limit = fields.integer("max_position_embeddings", max_positions, high=MAX_POSITIONS)
    new, old = fields.table("rope_parameters"), fields.table("rope_scaling")
    places = [table for table in (new, old) if table is not None and table.raw]
    theta = agreed("base", [(place, "rope_theta") for place in (fields, *places)], _theta)
    if theta is None:
        theta = fields.number("rope_theta", 10000.0, high=1e12)
    for place in places:
        for name, value in place.raw.items():
            if isinstance(value, Mapping):
                place.refuse(name, "all layers of this family turn alike")
    kind: RopeKind = agreed("kind", [(p, name) for p in places for name in ("rope_type", "type")], _kind) or "default"
    source = next((place for place in places if place.has("rope_type") or place.has("type")), fields)
    if agreed("share", [(place, "partial_rotary_factor") for place in (fields, *places)], _share) not in (None, 1.0):
        raise ConfigError(f"{fields.path('partial_rotary_factor')} is not 1; this family turns whole heads")
    if kind == "default":
        return RopeConfig(theta=theta, max_positions=limit)
    if kind == "longrope":
        length = "original_max_position_embeddings"
        original = agreed("length", [(place, length) for place in (fields, *places)], _length)
        original = original or fields.integer(length, 4096, high=MAX_POSITIONS)
        _check_factors(source, limit, original)
        return RopeConfig(
            theta=theta,
            kind="longrope",
            max_positions=limit,
            original_max_positions=original,
            short_factor=source.numbers("short_factor", head_dim // 2),
            long_factor=source.numbers("long_factor", head_dim // 2),
        )
    factor = source.number("factor", above_low=True, high=1e6)
    return RopeConfig(theta=theta, kind=kind, factor=factor, max_positions=limit)


def _check_factors(rope: Fields, limit: int, original: int) -> None:
    """longrope: a written ``factor`` or ``attention_factor`` must be the one that follows from the lengths."""
    ratio = limit / original
    scale = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 and original > 1 else 1.0
    for name, value in (("factor", ratio), ("attention_factor", scale)):
        given = rope.number(name, value, high=1e9, quiet=True)
        if not math.isclose(given, value, rel_tol=1e-6):
            raise ConfigError(f"{rope.path(name)} is {given}; this family has {value}")


def _theta(fields: Fields, name: str) -> float:
    return fields.number(name, above_low=True, high=1e12)


def _share(fields: Fields, name: str) -> float:
    return fields.number(name, high=1.0)


def _length(fields: Fields, name: str) -> int:
    return fields.integer(name, high=MAX_POSITIONS)


def _kind(fields: Fields, name: str) -> RopeKind:
    kind = fields.text(name)
    known: dict[str, RopeKind] = {"default": "default", "linear": "linear", "dynamic": "dynamic"}
    known |= {"su": "longrope", "longrope": "longrope"}
    if kind not in known:
        raise ConfigError(f'{fields.path(name)} is "{kind}"; known: {", ".join(known)}')
    return known[kind]
