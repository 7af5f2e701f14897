"""Low-rank products between our layers and those of the Hugging Face native model, exact both ways.

Most layers are ours under another name. The encoder's ``attn.qkv`` is three native layers, which share A while B is cut
by rows; back again, three different A are stacked and B becomes block diagonal. Phi-3's native ``qkv_proj`` and
``gate_up_proj`` are several layers of ours: stacked A, block-diagonal B, and a rank that many times higher. Such blocks
are recognised when they come back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mini_internvl.model.files import CheckpointError
from mini_internvl.model.layouts.native import text_names
from mini_internvl.model.lora import lora_layers
from mini_internvl.model.vlm import InternVL


@dataclass(frozen=True)
class LoraFactors:
    """One low-rank product, scale * b @ a: a is (rank, in), b is (out, rank), both float32."""

    a: Tensor
    b: Tensor
    scale: float


def pairs(model: InternVL) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """(our names, native names) of every layer: one and one, one and three (qkv), or several and one (fused)."""
    fused = text_names(model.config).fused
    parts = {part for names in fused.values() for part in names}
    for index, block in enumerate(model.language_model.layers):
        home = f"language_model.layers.{index}."
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear) and name not in parts:
                yield (home + name,), (f"model.{home}{name}",)
        for whole, names in fused.items():
            yield tuple(home + name for name in names), (f"model.{home}{whole}",)
    for index in range(len(model.vision_model.encoder.layers)):
        ours, theirs = f"vision_model.encoder.layers.{index}.", f"model.vision_tower.encoder.layer.{index}."
        yield (f"{ours}attn.qkv",), tuple(f"{theirs}attention.{part}_proj" for part in "qkv")
        yield (f"{ours}attn.proj",), (f"{theirs}attention.projection_layer",)
        yield from (((ours + name,), (theirs + name,)) for name in ("mlp.fc1", "mlp.fc2"))
    yield ("mlp1.1",), ("model.multi_modal_projector.linear_1",)
    yield ("mlp1.3",), ("model.multi_modal_projector.linear_2",)
    yield ("language_model.lm_head",), ("lm_head",)


def _rows(model: InternVL, ours: Sequence[str], native: Sequence[str]) -> list[int]:
    """Output rows of each member of the side that has several."""
    outputs = [_linear(model, name).out_features for name in ours]
    return outputs if len(ours) > 1 else [outputs[0] // len(native)] * len(native)


def _linear(model: InternVL, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def to_native(model: InternVL) -> dict[str, LoraFactors]:
    """Native name -> product, of every adapter of the model."""
    left = {
        name: LoraFactors(layer.lora_A.detach().float(), layer.lora_B.detach().float(), layer.scale)
        for name, layer in lora_layers(model).items()
    }
    native: dict[str, LoraFactors] = {}
    for ours, theirs in pairs(model):
        parts = [left.pop(name, None) for name in ours]
        if any(parts):
            native |= _convert(parts, theirs, _rows(model, ours, theirs), rank=0, fill=True)
    assert not left, f"adapters with no native place: {sorted(left)}"
    return native


def from_native(model: InternVL, native: Mapping[str, LoraFactors], where: str, rank: int) -> dict[str, LoraFactors]:
    """Our name -> product, of those by native name; ``rank`` is the adapter's general one.

    CheckpointError names the file ``where`` and a product that fits no layer of this model.
    """
    found: dict[str, LoraFactors] = {}
    left = dict(native)
    for ours, theirs in pairs(model):
        parts = [left.pop(name, None) for name in theirs]
        if not any(parts):
            continue
        rows = _rows(model, ours, theirs)
        columns = _linear(model, ours[0]).in_features
        for name, factors, n in zip(theirs, parts, rows if len(theirs) > 1 else [sum(rows)], strict=True):
            shape = (len(factors.b), factors.a.shape[1]) if factors else (n, columns)
            if shape != (n, columns):
                raise CheckpointError(f"{where}: {name} adapts a layer of shape {shape}, the base's is {(n, columns)}")
        found |= _convert(parts, ours, rows, rank=rank, fill=False)
    if left:
        raise CheckpointError(f"{where}: this model has no layer {', '.join(sorted(left)[:4])}; is it another base?")
    return found


def _convert(
    parts: list[LoraFactors | None], names: Sequence[str], rows: Sequence[int], *, rank: int, fill: bool
) -> dict[str, LoraFactors]:
    """The products of one side -> those of the other; ``names`` are the other side's."""
    if len(parts) > len(names):
        parts = [_fuse(parts, rows, fill=fill)]
    elif len(parts) < len(names):
        assert parts[0] is not None
        parts = _cut(parts[0], rows, rank=rank)
    return {name: factors for name, factors in zip(names, parts, strict=True) if factors}


def _fuse(parts: Sequence[LoraFactors | None], rows: Sequence[int], *, fill: bool) -> LoraFactors:
    """Products of stacked outputs -> one; with ``fill`` a missing part gets zero rows of A, to be told apart again."""
    present = [part for part in parts if part]
    first = present[0]
    rank, columns = first.a.shape if fill else (0, first.a.shape[1])
    whole = [
        part or LoraFactors(first.a.new_zeros(rank, columns), first.b.new_zeros(n, rank), first.scale)
        for part, n in zip(parts, rows, strict=True)
    ]
    bs = [part.b if part.scale == first.scale else part.b * (part.scale / first.scale) for part in whole]
    if len(present) == len(parts) and all(torch.equal(part.a, first.a) for part in present):
        return LoraFactors(first.a, torch.cat(bs), first.scale)
    return LoraFactors(torch.cat([part.a for part in whole]), torch.block_diag(*bs), first.scale)


def _cut(whole: LoraFactors, rows: Sequence[int], *, rank: int) -> list[LoraFactors | None]:
    """One product -> the products of its output rows: blocks where B is block diagonal, else all with the whole A.

    ``rank`` is the rank of one block where that is known: it tells blocks of a fresh adapter, whose B is zero.
    """
    count, total = len(rows), len(whole.a)
    bs, width = whole.b.split(list(rows)), total // len(rows)
    shared: list[LoraFactors | None] = [LoraFactors(whole.a, b, whole.scale) for b in bs]
    if total % count or not (whole.b.any() or total == count * rank):
        return shared
    spans = [slice(i * width, (i + 1) * width) for i in range(count)]
    if any(b[:, other].any() for i, b in enumerate(bs) for j, other in enumerate(spans) if i != j):
        return shared
    blocks = [LoraFactors(whole.a[span], b[:, span], whole.scale) for b, span in zip(bs, spans, strict=True)]
    return [block if block.a.any() or block.b.any() else None for block in blocks]
