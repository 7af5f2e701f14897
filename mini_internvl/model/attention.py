"""One attention for encoder and decoder: torch's fused kernel, except where plain matrix products are faster.

On a CPU the fused kernel is slow when bfloat16 gradients are needed: for the few dozen to few hundred tokens of a small
model's training the plain form took a fifth to two thirds of its time (``bench/train.py`` measures both).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN_UP_TO = 512
"""Longest sequence for which the plain form is used; its memory grows with the square."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, H, T, D).
        k: (B, K, S, D); each key head serves H / K query heads.
        v: (B, K, S, D).
        mask: broadcastable to (B, 1, T, S), True where a key may be seen.
        causal: hide later keys; only without ``mask`` and with T = S.
        dropout: on the weights.

    Returns:
        (B, H, T, D).
    """
    if k.shape[1] != q.shape[1]:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and k.shape[2] <= PLAIN_UP_TO
    if not plain or dropout:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf)
    return weights.softmax(-1) @ v
