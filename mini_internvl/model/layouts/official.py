"""The official layout: ``InternVLChatModel`` folders as released, the language model named as its own file says.

Source: ``configuration_internvl_chat.py``, ``modeling_internvl_chat.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mini_internvl.model import llms
from mini_internvl.model.config import VLMConfig

NAME = "official"
DROPPED = ("auto_map", "native_tied_embeddings")
"""Fields that are not written: one names code files that do not go along, one was true of the native files only."""
LLM = "language_model."


def matches(raw: Mapping[str, Any]) -> bool:
    return raw.get("model_type") == "internvl_chat" and "vision_config" in raw and "llm_config" in raw


def to_official_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(dict(raw))


def from_official_config(official: Mapping[str, Any], image_token_id: int | None, dtype: str) -> dict[str, Any]:
    """Every field that was read but ``DROPPED``, the weights' type and the id of ``<IMG_CONTEXT>``."""
    raw = {key: value for key, value in copy.deepcopy(dict(official)).items() if key not in DROPPED}
    return {**raw, "torch_dtype": dtype, "img_context_token_id": image_token_id}


def read(tensors: Iterable[tuple[str, Tensor]], config: VLMConfig) -> Iterator[tuple[str, Tensor]]:
    """Official names -> ours; the language model's fused matrices are cut, a shared embedding table is given twice."""
    return split_llm(tensors, config, llms.find(config.llm.architecture).NAMES, tied=is_tied(config))


def split_llm(
    tensors: Iterable[tuple[str, Tensor]], config: VLMConfig, names: llms.Names, *, tied: bool
) -> Iterator[tuple[str, Tensor]]:
    """The language model's tensors under our names, the others as they are.

    Where a ``tied`` model has no output matrix, a copy of the embedding table, which may train apart, comes last.
    """
    table: Tensor | None = None
    for key, tensor in tensors:
        if not key.startswith(LLM):
            yield key, tensor
            continue
        for name, part in names.split(key.removeprefix(LLM), tensor, config.llm):
            tied = tied and name != "lm_head.weight"
            table = part if name == "embed_tokens.weight" else table
            yield LLM + name, part
    if tied and table is not None:
        yield f"{LLM}lm_head.weight", table.clone()


def is_tied(config: VLMConfig) -> bool:
    """Whether config.json shares one table between input and output embeddings (some later family members)."""
    llm = config.official.get("llm_config", {})
    return bool(llm.get("tie_word_embeddings", config.official.get("tie_word_embeddings", False)))


def untied(config: VLMConfig) -> VLMConfig:
    """The same configuration of a model whose output matrix is its own, whatever config.json said."""
    official = copy.deepcopy(dict(config.official))
    official["llm_config"] = {**official.get("llm_config", {}), "tie_word_embeddings": False}
    if "tie_word_embeddings" in official:
        official["tie_word_embeddings"] = False
    return replace(config, official=official)


def are_equal(head: Tensor | None, table: Tensor | None) -> bool:
    """Whether a tied model's two tables can be written as one; on ``meta`` they can."""
    return head is not None and table is not None and (head.is_meta or head.equal(table))


def write(state: Mapping[str, Tensor], config: VLMConfig) -> Iterator[tuple[str, Tensor]]:
    """Our names -> official ones, matrices glued again; the equal tables of a tied model are written once."""
    head, table = (state.get(f"{LLM}{name}.weight") for name in ("lm_head", "embed_tokens"))
    if is_tied(config) and are_equal(head, table):
        state = {key: value for key, value in state.items() if key != f"{LLM}lm_head.weight"}
    return join_llm(state, config, llms.find(config.llm.architecture).NAMES)


def join_llm(state: Mapping[str, Tensor], config: VLMConfig, names: llms.Names) -> Iterator[tuple[str, Tensor]]:
    """The other tensors as they are, then the language model's under their names."""
    llm = {key.removeprefix(LLM): value for key, value in state.items() if key.startswith(LLM)}
    yield from ((key, value) for key, value in state.items() if not key.startswith(LLM))
    yield from ((LLM + name, value) for name, value in names.join(llm, config.llm))
