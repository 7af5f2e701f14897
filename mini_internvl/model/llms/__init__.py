"""The language models, one file each, found by the name in ``llm_config.architectures``.

A file holds::

    ARCHITECTURE    the official class name, for instance "Qwen2ForCausalLM"
    TEMPLATE        name of its chat template
    SIZES           family size -> official llm_config fields
    NAMES           the official names of its tensors: a :class:`Names`
    read_config     the fields of the official llm_config -> DecoderConfig, most of them by :func:`base_config`
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

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
from mini_internvl.plugins import list_names

MAX_POSITIONS = 10**9


@dataclass(frozen=True, kw_only=True)
class Names:
    """How others call the decoder's modules (their names -> ours), and which they fuse; all exact in every bit."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Their matrix -> ours, whose rows it holds one below the other."""
    by_kv_head: bool = False
    """Whether the rows are grouped: the queries, keys and values of one key-value head, then those of the next."""
    head: str = "lm_head"

    def split(self, key: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
        """One of their tensors -> ours; one of unknown name keeps it."""
        inner = key.removeprefix("model.")
        whole = next((name for name in self.fused if name in inner), None)
        if key == f"{self.head}.weight":
            yield "lm_head.weight", tensor
        elif whole:
            parts, columns = self.fused[whole], tensor.shape[1:]
            shares = [config.heads // config.kv_heads if part.endswith("q_proj") else 1 for part in parts]
            rows = tensor.reshape(config.kv_heads if self.by_kv_head else 1, sum(shares), -1, *columns)
            for part, own in zip(parts, rows.split(shares, dim=1), strict=True):
                yield inner.replace(whole, part), own.reshape(-1, *columns)
        else:
            yield _replaced(inner, self.renamed), tensor

    def join(self, state: Mapping[str, Tensor], config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
        back = {ours: theirs for theirs, ours in self.renamed.items()}
        places = {part: (whole, parts) for whole, parts in self.fused.items() for part in parts}
        for key, tensor in state.items():
            part = next((name for name in places if name in key), "")
            whole, parts = places.get(part, ("", ()))
            if key.startswith("lm_head."):
                yield key.replace("lm_head", self.head), tensor
            elif not part:
                yield f"model.{_replaced(key, back)}", tensor
            elif part == parts[0]:
                shape = (config.kv_heads if self.by_kv_head else 1, -1, *tensor.shape[1:])
                rows = [state[key.replace(part, name)].reshape(shape) for name in parts]
                yield f"model.{key.replace(part, whole)}", torch.cat(rows, dim=1).reshape(-1, *tensor.shape[1:])


def _replaced(key: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        key = key.replace(f"{old}.weight", f"{new}.weight")
    return key


@cache
def backbones() -> dict[str, ModuleType]:
    modules = [importlib.import_module(f"{__name__}.{name}") for name in list_names("model.llms")]
    return {module.ARCHITECTURE: module for module in modules}


def find(architecture: str) -> ModuleType:
    """The module of one official architecture; ConfigError names the known ones."""
    if architecture not in backbones():
        raise ConfigError(f'llm_config.architectures[0] is "{architecture}"; known: {", ".join(backbones())}')
    return backbones()[architecture]


def read_config(raw: Mapping[str, Any] | Fields) -> DecoderConfig:
    fields = raw if isinstance(raw, Fields) else Fields(raw, "llm_config")
    names = fields.raw.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        fields.refuse("architectures", f"known: {', '.join(backbones())}")
    return find(names[0]).read_config(fields)


def base_config(
    fields: Fields, *, architecture: str, norm_eps: float, max_positions: int, **changes: Any
) -> DecoderConfig:
    """The fields that all backbones spell alike, and ``changes``; ConfigError names one that is missing or wrong.

    ``norm_eps`` and ``max_positions`` are what an absent ``rms_norm_eps`` or ``max_position_embeddings`` means.
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
    ConfigError tells of an unknown kind, factor lists of the wrong length, or two names with different values.
    """
    limit = fields.integer("max_position_embeddings", max_positions, high=MAX_POSITIONS)
    tables = fields.table("rope_parameters"), fields.table("rope_scaling")
    nested = [table for table in tables if table is not None and table.raw]
    places = [fields, *nested]
    theta = agreed("base", places, ["rope_theta"], partial(Fields.number, above_low=True, high=1e12))
    theta = theta or fields.number("rope_theta", 10000.0, high=1e12)
    for place in nested:
        for name, value in place.raw.items():
            if isinstance(value, Mapping):
                place.refuse(name, "all layers of this family turn alike")
    kind: RopeKind = agreed("kind", nested, ["rope_type", "type"], _kind) or "default"
    source = next((place for place in nested if place.has("rope_type") or place.has("type")), fields)
    if agreed("share", places, ["partial_rotary_factor"], partial(Fields.number, high=1.0)) not in (None, 1.0):
        raise ConfigError(f"{fields.path('partial_rotary_factor')} is not 1; this family turns whole heads")
    rope = RopeConfig(theta=theta, kind=kind, max_positions=limit)
    if kind == "longrope":
        length = "original_max_position_embeddings"
        original = agreed("length", places, [length], partial(Fields.integer, high=MAX_POSITIONS))
        original = original or fields.integer(length, 4096, high=MAX_POSITIONS)
        _check_factors(source, limit, original)
        short, long = (source.numbers(name, head_dim // 2) for name in ("short_factor", "long_factor"))
        return replace(rope, original_max_positions=original, short_factor=short, long_factor=long)
    return rope if kind == "default" else replace(rope, factor=source.number("factor", above_low=True, high=1e6))


def _check_factors(rope: Fields, limit: int, original: int) -> None:
    """longrope: a written ``factor`` or ``attention_factor`` must be the one that follows from the lengths."""
    ratio = limit / original
    scale = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 and original > 1 else 1.0
    for name, value in (("factor", ratio), ("attention_factor", scale)):
        given = rope.number(name, value, high=1e9, quiet=True)
        if not math.isclose(given, value, rel_tol=1e-6):
            raise ConfigError(f"{rope.path(name)} is {given}; this family has {value}")


def _kind(fields: Fields, name: str) -> RopeKind:
    kind: RopeKind | Literal["su"] = fields.text(name, known=("default", "linear", "dynamic", "su", "longrope"))
    return "longrope" if kind == "su" else kind
