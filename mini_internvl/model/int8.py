"""A decoder with int8 weights, made of a loaded one: a quarter of float32's memory, a half of bfloat16's.

Each row of a matrix has one scale; activations stay as they are. Unusual: on a CPU a few rows of tokens, the answers
under way, go through torch's own int8 kernel, which takes activations in bfloat16; more rows, and other devices, widen
the weights part by part for an ordinary product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_internvl.model.decoder import Decoder

STEP = 64  # a matrix goes through the kernel where its width is so many times something: it reads in whole steps
FEW_ROWS = 32  # up to so many the kernel is faster than widening the weights first
PART = 2**24  # values that are widened at a time
_LARGEST = 127
_KERNEL = getattr(torch, "_weight_int8pack_mm", None)  # private: where it is missing, weights are widened always


def quantise_decoder(decoder: Decoder) -> None:
    """Replace the decoder's matrices by int8 ones, in place and one after the other; ``.to`` then sets its type.

    ValueError names a matrix that holds NaN or infinity.
    """
    kinds = {nn.Linear: Int8Linear, nn.Embedding: Int8Embedding}
    found = {name: kinds[type(module)] for name, module in decoder.named_modules() if type(module) in kinds}
    for name, kind in found.items():  # the plain ones are not held, so each goes as its int8 one comes
        try:
            decoder.set_submodule(name, kind(decoder.get_submodule(name)))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None


class _Int8(nn.Module):
    """A matrix (rows, columns) as int8, with a scale (rows,)."""

    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        values, scale = _rounded(weight.detach())
        self.weight = nn.Parameter(values, requires_grad=False)
        self.register_buffer("scale", scale)


class Int8Linear(_Int8):
    """``nn.Linear`` with int8 weights: (..., in) -> (..., out) in the type of the input."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.weight)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        outer, width = self.weight.shape
        rows = x.reshape(-1, width)
        if _KERNEL is not None and x.is_cpu and len(rows) <= FEW_ROWS and width % STEP == 0:
            y = _KERNEL(rows.bfloat16().contiguous(), self.weight, self.scale.bfloat16()).to(x.dtype)
        else:
            parts = self.weight.split(max(1, PART // width))
            y = torch.cat([F.linear(rows, part.to(x.dtype)) for part in parts], dim=-1) * self.scale.to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], outer)


class Int8Embedding(_Int8):
    """``nn.Embedding`` with int8 rows: ids (...) -> (..., width) in the type of the scales."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__(table.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight) * self.scale[ids][..., None]


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) -> int8 of the same shape, and the float32 scale of each row.

    Scales are numbers of bfloat16, so that the kernel, which takes them so, multiplies by no other.
    """
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    step = max(1, PART // weight.shape[1])
    for own, value, scale in zip(weight.split(step), values.split(step), scales.split(step), strict=True):
        largest = own.float().abs().amax(1)
        if not largest.isfinite().all():
            raise ValueError("holds NaN or infinity: the checkpoint is damaged")
        scale.copy_((largest / _LARGEST).bfloat16()).masked_fill_(scale == 0, 1)
        value.copy_((own.float() / scale[:, None]).round().clamp(-_LARGEST, _LARGEST))
    return values, scales
