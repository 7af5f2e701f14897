"""Attention for encoder and decoder: which keys a token sees, decided once a forward, and the kernel that computes it.

The kernel is torch's fused one, except where plain matrix products are faster: on a CPU the fused kernel is slow when
bfloat16 gradients are needed. For the few dozen to few hundred tokens of a small model's training the plain form took
a fifth to two thirds of its time (``bench/train.py`` measures both).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN_UP_TO = 512  # longest sequence for which the plain form is used; its memory grows with the square


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Which of the S keys each of the last T tokens sees, for all layers of one forward.

    One of: everything (neither field), earlier tokens and itself (``causal``), what ``mask`` says.
    """

    causal: bool = False  # hide later keys; only where T = S
    mask: Tensor | None = None  # (B or 1, 1, T, S) bool, True where a key is seen; at least one key of every token is

    def __post_init__(self) -> None:
        assert not (self.causal and self.mask is not None), "a mask says everything"


def plan_attention(
    position_ids: Tensor,
    *,
    total: int,
    padding: Tensor | None = None,
    window: int | None = None,
    segment_ids: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> AttentionPlan:
    """The cheapest plan that gives every real token what it would see alone; outputs at padding are never read.

    ``total`` is S, the new tokens of ``position_ids`` (B, T) and the cached ones before. ``padding``, (B, S), is 1 at
    real tokens; without a cache what lies on the right may be left out: causal attention does not look there. Segments
    and documents are (B, S) as in ``records.Batch``, without a cache.
    """
    new, device = position_ids.shape[1], position_ids.device
    if padding is not None and new == total and _right_padded(padding):
        padding = None
    windowed = window is not None and total > window
    plain = padding is None and segment_ids is None and document_ids is None and not windowed
    if plain and new in (1, total):
        return AttentionPlan(causal=new > 1)
    columns = torch.arange(total, device=device)
    rows = columns[total - new :, None]
    seen = (columns <= rows)[None]  # (1, T, S)
    if document_ids is not None:
        seen = seen & (document_ids[:, None] == document_ids[:, :, None])
    if segment_ids is not None:
        seen = seen & ((segment_ids[:, None] == 0) | (segment_ids[:, None] == segment_ids[:, :, None]))
    if windowed:
        assert window is not None
        places = columns[None] if new < total else position_ids  # padding shifts places and rows alike
        seen = seen & (places[:, None] > places[:, total - new :, None] - window)
    if padding is not None:
        seen = (seen & padding[:, None].bool()) | (columns == rows)
    return AttentionPlan(mask=seen[:, None])


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
