"""Attention for encoder and decoder: which keys a token sees, decided once a forward, and the kernel that computes it.

The kernel is torch's fused one, except where plain matrix products are faster: on a CPU the fused kernel is slow when
bfloat16 gradients are needed. For the few dozen to few hundred tokens of a small model's training the plain form took
a fifth to two thirds of its time (``bench/questions.py`` measures both).

Packed rows hold many documents, each of which sees itself alone. A mask over the row would cost its length squared, so
documents are computed one by one; on CUDA all at once, by ``varlen_attn``, or by FlexAttention where that does not fit.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN_UP_TO = 512  # longest sequence for which the plain form is used; its memory grows with the square


@dataclass(frozen=True, kw_only=True)
class Varlen:
    """Causal documents for ``varlen_attn``, those of all rows one after the other."""

    ends: Tensor  # (documents + 1,) int32, on the device: 0, then where each document ends
    longest: int  # tokens of the longest
    window: int | None  # tokens that one sees, itself included; None: all


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Which of the S keys each of the last T tokens sees, for all layers of one forward.

    One of: everything (no field), earlier tokens and itself (``causal``), what ``mask`` says, or, in packed rows, what
    its own document has (``documents``, ``varlen`` and ``blocks`` are three ways to compute that).
    """

    causal: bool = False  # hide later keys; only where T = S
    mask: Tensor | None = None  # (B or 1, 1, T, S) bool, True where a key is seen; at least one key of every token is
    documents: tuple[tuple[int, AttentionPlan], ...] = ()  # tokens and plan of each, of all rows one after the other
    varlen: Varlen | None = None
    blocks: Any = None  # FlexAttention's BlockMask

    def __post_init__(self) -> None:
        forms = self.causal, self.mask is not None, bool(self.documents), self.varlen, self.blocks is not None
        assert sum(map(bool, forms)) <= 1, "a plan has one form"


def plan_attention(
    position_ids: Tensor,
    *,
    total: int,
    padding: Tensor | None = None,
    window: int | None = None,
    segment_ids: Tensor | None = None,
    document_ids: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 64,
) -> AttentionPlan:
    """The cheapest plan that gives every real token what it would see alone; outputs at padding are never read.

    ``total`` is S, the new tokens of ``position_ids`` (B, T) and the cached ones before. ``padding``, (B, S), is 1 at
    real tokens; without a cache what lies on the right may be left out: causal attention does not look there. Segments
    and documents are (B, S) as in ``records.Batch``, without a cache. They decide shapes, so documents are computed
    apart only where these ids are on the CPU. ``dtype`` and ``head_dim`` are those of the queries.
    """
    new = position_ids.shape[1]
    if padding is not None and new == total and _right_padded(padding):
        padding = None
    if window is not None and total <= window:
        window = None
    packed = segment_ids is not None or document_ids is not None
    if padding is None and window is None and not packed and new in (1, total):
        return AttentionPlan(causal=new > 1)
    if padding is None and packed:
        lengths = document_lengths(position_ids.shape, segment_ids, document_ids)
        squares = sum(length * length for length in lengths)
        if lengths and (len(position_ids) == 1 or 2 * squares <= position_ids.numel() * total):
            if segment_ids is not None and not segment_ids.any():
                segment_ids = None
            window = None if window is None or window >= max(lengths) else window
            if position_ids.is_cuda:
                ids = (segment_ids, document_ids)
                return _plan_on_cuda(position_ids, lengths, window, *ids, dtype=dtype, head_dim=head_dim)
            return _plan_documents(position_ids, lengths, window, segment_ids)
    return AttentionPlan(mask=_seen(position_ids, total, padding, window, segment_ids, document_ids)[:, None])


def _seen(
    position_ids: Tensor,
    total: int,
    padding: Tensor | None,
    window: int | None,
    segment_ids: Tensor | None,
    document_ids: Tensor | None,
) -> Tensor:
    """(B or 1, T, S) bool, True where a key is seen; arguments as in :func:`plan_attention`."""
    new, device = position_ids.shape[1], position_ids.device
    columns = torch.arange(total, device=device)
    rows = columns[total - new :, None]
    seen = (columns <= rows)[None]
    if document_ids is not None:
        document_ids = to_device(document_ids, device)
        seen = seen & (document_ids[:, None] == document_ids[:, :, None])
    if segment_ids is not None:
        segment_ids = to_device(segment_ids, device)
        seen = seen & ((segment_ids[:, None] == 0) | (segment_ids[:, None] == segment_ids[:, :, None]))
    if window is not None:
        places = columns[None] if new < total else position_ids  # padding shifts places and rows alike
        seen = seen & (places[:, None] > places[:, total - new :, None] - window)
    if padding is not None:
        seen = (seen & padding[:, None].bool()) | (columns == rows)
    return seen


def document_lengths(shape: Sequence[int], segment_ids: Tensor | None, document_ids: Tensor | None) -> list[int]:
    """Tokens of each document, and of padding, of all rows (B, T) one after the other.

    Empty where the ids are not on the CPU, or have no values.
    """
    if any(ids is not None and not (ids.is_cpu and has_values(ids)) for ids in (segment_ids, document_ids)):
        return []
    ids = torch.zeros(*shape, dtype=torch.int64) if document_ids is None else document_ids
    if segment_ids is not None:
        ids = ids.where(segment_ids >= 0, -1)
    rows = torch.arange(shape[0])[:, None].expand_as(ids)
    pairs = torch.stack([rows.flatten(), ids.flatten()])
    counts: list[int] = pairs.unique_consecutive(dim=1, return_counts=True)[1].tolist()
    return counts


def to_device(ids: Tensor, device: torch.device) -> Tensor:
    return ids.to(device, non_blocking=True)


def _plan_documents(
    position_ids: Tensor, lengths: Sequence[int], window: int | None, segment_ids: Tensor | None
) -> AttentionPlan:
    """Each document with a plan of its own."""
    sizes = list(lengths)
    segments = [None] * len(sizes) if segment_ids is None else segment_ids.flatten().split(sizes)
    plans = []
    for positions, own in zip(position_ids.flatten().split(sizes), segments, strict=True):
        own = own[None] if own is not None and (own > 0).any() else None
        near = window if window is not None and window < len(positions) else None
        if own is None and near is None:
            plans.append(AttentionPlan(causal=True))
        else:
            plans.append(AttentionPlan(mask=_seen(positions[None], len(positions), None, near, own, None)[:, None]))
    return AttentionPlan(documents=tuple(zip(sizes, plans, strict=True)))


def _plan_on_cuda(
    position_ids: Tensor,
    lengths: Sequence[int],
    window: int | None,
    segment_ids: Tensor | None,
    document_ids: Tensor | None,
    *,
    dtype: torch.dtype,
    head_dim: int,
) -> AttentionPlan:
    """All documents at once, if a kernel does that; nothing is read back from the device."""
    device, (rows, total) = position_ids.device, position_ids.shape
    if segment_ids is None and _varlen_fits(device, dtype, head_dim):
        ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).pin_memory()
        return AttentionPlan(varlen=Varlen(ends=to_device(ends, device), longest=max(lengths), window=window))
    if not _has_triton():
        return _plan_documents(position_ids, lengths, window, segment_ids)
    moved = (None if ids is None else to_device(ids, device) for ids in (segment_ids, document_ids))
    sees = sees_key(position_ids, window, *moved)
    return AttentionPlan(blocks=_flex().make_mask(sees, rows, None, total, total, device=device))


def sees_key(
    position_ids: Tensor, window: int | None, segment_ids: Tensor | None, document_ids: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention's form of the mask: (row, head, query, key) -> whether the query sees the key."""

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = key <= query
        if document_ids is not None:
            seen = seen & (document_ids[row, query] == document_ids[row, key])
        if segment_ids is not None:
            theirs = segment_ids[row, key]
            seen = seen & ((theirs == 0) | (theirs == segment_ids[row, query]))
        if window is not None:
            seen = seen & (position_ids[row, key] > position_ids[row, query] - window)
        return seen

    return sees


@functools.cache
def _varlen() -> Callable[..., Any] | None:
    """torch's attention over lengths, where this torch has it with grouped keys and windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"enable_gqa", "window_size"} <= known.keys() else None


def _varlen_fits(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether its kernel, FlashAttention 2, takes such queries."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
    fits = dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= 256
    return fits and _varlen() is not None and torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return has_triton()


@dataclass(frozen=True, kw_only=True)
class _Flex:
    make_mask: Callable[..., Any]
    attend: Callable[..., Tensor]


@functools.cache
def _flex() -> _Flex:
    """FlexAttention, compiled; not compiled it would hold all weights of a row in memory."""
    from torch.nn.attention import flex_attention as flex

    return _Flex(make_mask=torch.compile(flex.create_block_mask), attend=torch.compile(flex.flex_attention))


def _right_padded(padding: Tensor) -> bool:
    """Whether no real token follows a padding token; where values are not at hand, no."""
    return has_values(padding) and not bool((padding[:, 1:] > padding[:, :-1]).any())


def has_values(x: Tensor) -> bool:
    """Whether a tensor's values can be read: not on ``meta``, nor in a fake or traced tensor."""
    return type(x) in (Tensor, torch.nn.Parameter) and not x.is_meta and not torch.compiler.is_compiling()


def attend(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None = None, *, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D)) v with ``dropout`` on the weights; without a plan all keys are seen.

    q is (B, H, T, D), k and v (B, K, S, D): each key head serves H / K query heads. Gives (B, H, T, D).
    """
    if plan is not None and (plan.documents or plan.varlen or plan.blocks is not None):
        return _attend_packed(q, k, v, plan)
    mask, causal = (None, False) if plan is None else (plan.mask, plan.causal)
    groups = q.shape[1] // k.shape[1]
    plain = q.is_cpu and q.dtype == torch.bfloat16 and q.requires_grad and k.shape[2] <= PLAIN_UP_TO
    if not plain or dropout:
        if groups > 1 and q.shape[2] == 1:  # one new token: the heads of a group are queries of one head
            folded = q.reshape(q.shape[0], k.shape[1], groups, -1)
            return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask, dropout_p=dropout).reshape(q.shape)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, enable_gqa=groups > 1
        )
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf)
    return weights.softmax(-1) @ v


def _attend_packed(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """:func:`attend` in packed rows."""
    if plan.blocks is not None:
        return _flex().attend(q, k, v, block_mask=plan.blocks, enable_gqa=q.shape[1] > k.shape[1])
    b, t = q.shape[0], q.shape[2]
    rows = [x.transpose(0, 1).flatten(1, 2) for x in (q, k, v)]  # (H or K, B * T, D)
    if plan.varlen is not None:
        ends, longest, window = plan.varlen.ends, plan.varlen.longest, plan.varlen.window
        kernel = _varlen()
        assert kernel is not None
        flat = kernel(
            *(x.transpose(0, 1) for x in rows), ends, ends, longest, longest,
            window_size=(-1 if window is None else window - 1, 0), enable_gqa=q.shape[1] > k.shape[1],
        ).transpose(0, 1)  # fmt: skip
    else:
        lengths = [length for length, _ in plan.documents]
        pieces = zip(*(x[None].split(lengths, dim=2) for x in rows), plan.documents, strict=True)
        flat = torch.cat([attend(q, k, v, own) for q, k, v, (_, own) in pieces], dim=2)[0]
    return flat.unflatten(1, (b, t)).transpose(0, 1)
