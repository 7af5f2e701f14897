"""The decoder that the language models share: RMSNorm, rotary attention with grouped keys, gated MLP.

The backbones differ only in names, fused matrices, biases, norms of queries and keys, and rotary kind, all of which
``model/llms`` describes.
Shapes: B batch, T new tokens, S all tokens seen so far, H heads, K key-value heads, D width of a head. Blocks and their
parts take and give (B, T, hidden).

Keys enter the cache already rotated. For the "dynamic" and "longrope" kinds the rotation depends on the length at
that moment, so a generation that crosses the limit keeps the earlier rotation of its earlier keys, as in the original.
There the longest row of a batch decides; here each row (each document of a packed row) goes by its own length, so that
a batch answers as each row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mini_internvl.model.attention import AttentionPlan, attend, plan_attention, to_device
from mini_internvl.model.cache import KVCache, SlotForward
from mini_internvl.model.config import DecoderConfig, RopeConfig
from mini_internvl.model.vision import RMSNorm


def rotary_tables(rope: RopeConfig, head_dim: int, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of each position (B, T), each float32 (B, 1, T, D).

    ``lengths``, (B, 1 or T), are the tokens of the sequence that each token belongs to, padding left out and cache
    included; "dynamic" and "longrope" use them.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    theta: Tensor | float = rope.theta
    divisor: Tensor | float = 1.0
    scale = 1.0
    if rope.kind == "linear":
        divisor = rope.factor
    elif rope.kind == "dynamic":
        stretch = rope.factor * lengths.float() / rope.max_positions - (rope.factor - 1)
        theta = theta * stretch.where(lengths > rope.max_positions, 1.0)[..., None] ** (head_dim / (head_dim - 2))
    elif rope.kind == "longrope":
        short, long = torch.tensor([rope.short_factor, rope.long_factor], device=positions.device)
        divisor = torch.where(lengths[..., None] > rope.original_max_positions, long, short)
        scale = rope.attention_factor
    inv_freq = 1.0 / (divisor * theta**exponent)  # (D/2,) or (B, 1 or T, D/2)
    angles = positions[..., None].float() * inv_freq  # (B, T, D/2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos() * scale, angles.sin() * scale


def sequence_lengths(position_ids: Tensor, document_ids: Tensor | None) -> Tensor:
    """(B, 1), or (B, T) with documents: how many tokens the sequence of each token has, by its last position."""
    if document_ids is None:
        return position_ids.amax(1, keepdim=True) + 1
    place = to_device(document_ids.clamp(min=0), position_ids.device)
    last = torch.zeros_like(position_ids).scatter_reduce(1, place, position_ids, "amax")
    return last.gather(1, place) + 1


def rotation_group(rope: RopeConfig, length: int) -> int:
    """Equal for sequences that :func:`rotary_tables` rotates alike."""
    if rope.kind == "longrope":
        return int(length > rope.original_max_positions)
    return max(length, rope.max_positions) if rope.kind == "dynamic" else 0


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, H, T, D) by the tables; the two halves of D form the pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


Cache = KVCache | SlotForward


class Attention(nn.Module):
    """Causal attention; each key-value head serves a group of query heads."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.attend = attend  # replaced where the block is compiled

    def forward(
        self, x: Tensor, tables: tuple[Tensor, Tensor], plan: AttentionPlan, cache: Cache | None, layer: int
    ) -> Tensor:
        b, t, _ = x.shape
        parts = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (part.view(b, t, -1, self.head_dim).transpose(1, 2) for part in parts)
        if self.qk_norm:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        q, k = rotate(q, *tables), rotate(k, *tables)
        if isinstance(cache, SlotForward):
            x = cache.attend(layer, q, k, v)
        else:
            if cache is not None:
                k, v = cache.append(layer, k, v)
            x = self.attend(q, k, v, plan)
        return self.o_proj(x.transpose(1, 2).reshape(b, t, -1))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm attention, then pre-norm MLP, both residual."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(config)
        self.checkpointing = False  # keep the input alone for the backward pass, and compute the rest again

    def forward(
        self, x: Tensor, tables: tuple[Tensor, Tensor], plan: AttentionPlan, cache: Cache | None, layer: int
    ) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, tables, plan, cache, layer, use_reentrant=False)
        return self._forward(x, tables, plan, cache, layer)

    def _forward(
        self, x: Tensor, tables: tuple[Tensor, Tensor], plan: AttentionPlan, cache: Cache | None, layer: int
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), tables, plan, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token rows in, final hidden states out; ``lm_head`` turns them into logits."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, x: Tensor, **placed: Any) -> Tensor:
        """(B, T, hidden) embedded tokens -> (B, T, hidden) after the final norm; ``placed`` as in :meth:`states`."""
        return self.states(x, (len(self.layers),), **placed)[0]

    def states(
        self,
        x: Tensor,
        depths: Sequence[int],
        *,
        padding: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        segment_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> list[Tensor]:
        """(B, T, hidden) embedded tokens -> (B, T, hidden) after so many blocks and the final norm, for each of
        ``depths``; blocks behind the deepest are not run.

        Args:
            padding: (B, S) 1 at real tokens, cache included; ``None`` when nothing is padded, or only the right ends
                of rows without a cache, where causal attention does not look.
            position_ids: (B, T); ``None`` counts the real tokens of each row, cached ones included.
            cache: receives the new keys and values. That of slots holds positions and lengths itself, for the tokens
                of all slots one after the other, and ``x`` is (1, T, hidden).
            segment_ids, document_ids: (B, T) as in ``records.Batch``, on the CPU wherever the model is; need
                ``position_ids`` and no cache.
            lengths: (B, 1) tokens of each row's whole sequence, where more of it follows later.
        """
        b, t, _ = x.shape
        if isinstance(cache, SlotForward):
            tables = rotary_tables(self.config.rope, self.config.head_dim, cache.position_ids, cache.lengths)
            found = self._run(x, depths, tables, AttentionPlan(), cache)
            cache.advance()
            return found
        past = cache.length if cache is not None else 0
        if segment_ids is not None or document_ids is not None:
            assert cache is None, "segments are those of a whole row"
            assert position_ids is not None, "segments come with their positions"
        if position_ids is None and padding is not None:
            position_ids = (padding.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        elif position_ids is None:
            position_ids = torch.arange(past, past + t, device=x.device).expand(b, t)
        if lengths is None:
            lengths = sequence_lengths(position_ids, document_ids)
        tables = rotary_tables(self.config.rope, self.config.head_dim, position_ids, lengths)
        plan = plan_attention(
            position_ids,
            total=past + t,
            padding=padding,
            window=self.config.sliding_window,
            segment_ids=segment_ids,
            document_ids=document_ids,
            dtype=x.dtype,
            head_dim=self.config.head_dim,
        )
        found = self._run(x, depths, tables, plan, cache)
        if cache is not None:
            cache.length += t
        return found

    def _run(
        self,
        x: Tensor,
        depths: Sequence[int],
        tables: tuple[Tensor, Tensor],
        plan: AttentionPlan,
        cache: Cache | None,
    ) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for index in range(max(depths)):
            x = self.layers[index](x, tables, plan, cache, index)
            if index + 1 in depths:
                found[index + 1] = self.norm(x)
        return [found[depth] for depth in depths]
