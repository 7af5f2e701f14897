"""The language model of a GGUF file: its keys and its tensors under llama.cpp's names.

Where llama.cpp computes something else than the model does, the file is refused, or the context that it promises ends
before the difference begins: sliding windows and rotary positions stretched by length ("dynamic") are not computed
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mini_internvl.gguf.tensors import Pair, library
from mini_internvl.model import llms
from mini_internvl.model.config import ConfigError, DecoderConfig
from mini_internvl.model.layouts.official import LLM

if TYPE_CHECKING:
    import gguf


def check(config: DecoderConfig) -> None:
    """ConfigError for a language model that llama.cpp cannot compute."""
    theirs = llms.find(config.architecture).GGUF
    name = f"llama.cpp's {theirs.architecture}"
    if config.heads * config.head_dim != config.hidden_size and not theirs.wide_heads:
        raise ConfigError(
            f"{config.heads} heads of {config.head_dim} values are not {config.hidden_size} together, as {name} needs"
        )
    if config.rope.kind == "longrope" and not theirs.longrope:
        raise ConfigError(f"{name} has no longrope rotary positions")


def context_length(config: DecoderConfig) -> int:
    """Positions that llama.cpp computes as the model does."""
    rope = config.rope
    most = rope.max_positions if rope.kind == "dynamic" else rope.context_length
    return min(most, config.sliding_window or most)


def add_keys(writer: gguf.GGUFWriter, config: DecoderConfig) -> None:
    """Sizes, rotary positions and context of the language model."""
    rope, package = config.rope, library()
    writer.add_context_length(context_length(config))
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.layers)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope.theta)
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
    if rope.kind == "linear":
        writer.add_rope_scaling_type(package.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.factor)
    elif rope.kind == "longrope":
        writer.add_rope_scaling_type(package.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope.original_max_positions)
        writer.add_rope_scaling_attn_factors(rope.attention_factor)


def tensors(state: Mapping[str, Tensor], config: DecoderConfig) -> Iterator[Pair]:
    """Every tensor of the language model under llama.cpp's name, from those under ours (``language_model.*``).

    Of two equal tables of embeddings both are written, as some of its models need.
    """
    backbone, package = llms.find(config.architecture), library()
    theirs = backbone.GGUF
    names = package.get_tensor_name_map(_architecture(theirs.architecture), config.layers)
    own = {key.removeprefix(LLM): value for key, value in state.items() if key.startswith(LLM)}
    if config.rope.kind == "longrope":
        for length, factors in (("long", config.rope.long_factor), ("short", config.rope.short_factor)):
            yield f"rope_factors_{length}.weight", torch.tensor(factors, dtype=torch.float32)
    found = backbone.NAMES.join(own, config) if theirs.fused else _plain(own)
    for key, value in found:
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None, key
        head = next((count for part, count in _heads(config).items() if part in key), None)
        yield name, _paired(value, head) if theirs.pairs and head else value


def _plain(own: Mapping[str, Tensor]) -> Iterator[Pair]:
    return ((key if key.startswith("lm_head.") else f"model.{key}", value) for key, value in own.items())


def _heads(config: DecoderConfig) -> dict[str, int]:
    """Rotated matrices and the number of their heads."""
    return {"self_attn.q_proj.": config.heads, "self_attn.k_proj.": config.kv_heads}


def _paired(rows: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys so ordered that two that turn together are neighbours: 0, half, 1, half + 1, ..."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _architecture(name: str) -> gguf.MODEL_ARCH:
    known = {text: number for number, text in library().MODEL_ARCH_NAMES.items()}
    return known[name]
