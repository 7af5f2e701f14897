"""The language models, one file each, found by the name in ``llm_config.architectures``.

A file holds::

    ARCHITECTURE    the official class name, for instance "Qwen2ForCausalLM"
    TEMPLATE        name of the chat template of the generation that first had it
    TOKENIZER       files of its official tokenizer
    IMAGE_TOKEN     id of <IMG_CONTEXT> where rows without a token follow the family's nine; else ``None``
    SIZES           family size -> official llm_config fields, but those that all have alike; "1B" is of InternVL2, of a
                    later generation the name tells it: "3.5-1B"
    NAMES           the official names of its tensors: a :class:`Names`
    GGUF            what llama.cpp calls and expects of it: a :class:`Gguf`
    EXAMPLE         a tiny llm_config with everything that is its own, which the generic tests run
    read_config     the fields of the official llm_config -> DecoderConfig, most of them by its ``from_official``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mini_internvl import plugins
from mini_internvl.model.config import ConfigError, DecoderConfig
from mini_internvl.model.fields import Fields

CONTRACT = ("ARCHITECTURE", "TEMPLATE", "TOKENIZER", "IMAGE_TOKEN", "SIZES", "NAMES", "GGUF", "EXAMPLE", "read_config")
TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}
"""What the examples have in common."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """How others call the decoder's modules (their names -> ours), and which they fuse; all exact in every bit."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # their matrix -> ours, stacked
    by_kv_head: bool = False  # whether rows go by key-value head: its queries, key, value, then the next's
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
            groups = config.kv_heads if self.by_kv_head else 1
            if not tensor.numel() or len(tensor) % (groups * sum(shares)):
                yield inner.replace(whole, parts[0]), tensor  # that name's shape is another, and is told
                return
            rows = tensor.reshape(groups, sum(shares), -1, *columns)
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


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """How llama.cpp computes a language model, where its reading differs from ours."""

    architecture: str  # its name there, for instance "qwen2"
    fused: bool = False  # whether it reads the official fused matrices; else ours
    pairs: bool = False  # whether it rotates neighbouring values of a head; else values half a head apart, as here
    wide_heads: bool = False  # whether all heads together may be wider or narrower than the hidden states
    longrope: bool = False  # whether it has factor lists for short and long contexts


def _replaced(key: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        key = key.replace(f"{old}.weight", f"{new}.weight")
    return key


@cache
def backbones() -> dict[str, ModuleType]:
    modules = [plugins.find("model.llms", name) for name in plugins.list_names("model.llms")]
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
