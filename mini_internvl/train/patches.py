"""The loss over patches: what stands on every patch of an image, for an encoder that starts from nothing.

A language model's answers say little about where and what a fresh encoder should look at: it takes very many of them
before letters are told apart. Here every patch has a label of its own, since we drew the image: the character or
shape that covers it most, its place in its line (of a shape: from the left), the line (of a shape: from the top), and
its colour. Four linear heads on the encoder's output learn them; they are thrown away after the stage. The pretraining
of InternViT plays this part for the released sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_internvl.model.vlm import InternVL
from mini_internvl.records import Batch, PatchAnnotation
from mini_internvl.synth.canvas import COLOURS
from mini_internvl.synth.scene import SHAPES

IGNORE = -100
THINGS = {text: i for i, text in enumerate(["", *map(chr, range(33, 127)), "€", "£", *SHAPES, "bar", "point", "slice"])}
"""Label of what a mark shows; 0 is the bare background."""
SHADES = {name: i for i, name in enumerate(COLOURS)}
"""Label of a colour."""
PLACES, LINES = 24, 8
"""Places in a line and lines that have a label; later ones share the last."""
SMALLEST = 0.4
"""Height in patches below which a mark is too small to be asked for."""
EMPTY_WEIGHT = 0.15
"""Weight of a patch without a mark."""
ORDER_WEIGHT = 0.3
"""Weight of the losses over place and line."""


def patch_labels(
    patch_annotations: Sequence[PatchAnnotation], grid: tuple[int, int], thumbnail: bool, side: int
) -> Tensor:
    """Labels of every patch of every tile.

    Args:
        marks: what stands where in the image.
        grid: (columns, rows) of tiles.
        thumbnail: whether the whole image follows as a last tile.
        side: patches along one side of a tile.

    Returns:
        (tiles, side * side, 4) int64: thing, place in its line, line, colour; -100 where there is nothing to tell.
    """
    columns, rows = grid
    canvas = _rasterise(patch_annotations, columns * side, rows * side)
    tiles = canvas.reshape(rows, side, columns, side, 4).swapaxes(1, 2).reshape(-1, side * side, 4)
    if thumbnail:
        tiles = np.concatenate([tiles, _rasterise(patch_annotations, side, side).reshape(1, -1, 4)])
    return torch.from_numpy(np.ascontiguousarray(tiles))


def _rasterise(patch_annotations: Sequence[PatchAnnotation], width: int, height: int) -> np.ndarray:
    """(height, width, 4) labels; a patch belongs to the mark that covers most of it."""
    labels = np.full((height, width, 4), IGNORE, np.int64)
    labels[..., 0] = 0
    covered = np.zeros((height, width))
    for mark in patch_annotations:
        left, right = (min(max(v * width, 0.0), width) for v in (mark.box[0], mark.box[2]))
        top, bottom = (min(max(v * height, 0.0), height) for v in (mark.box[1], mark.box[3]))
        readable = bottom - top >= SMALLEST and mark.text in THINGS
        order = [IGNORE if n is None else min(n, most - 1) for n, most in ((mark.place, PLACES), (mark.line, LINES))]
        order.append(SHADES.get(mark.colour or "", IGNORE))
        for row in range(int(top), min(height, int(np.ceil(bottom)))):
            for column in range(int(left), min(width, int(np.ceil(right)))):
                across = min(right, column + 1) - max(left, column)
                down = min(bottom, row + 1) - max(top, row)
                if across > 0.12 and down > 0.15 and across * down > covered[row, column]:
                    covered[row, column] = across * down
                    labels[row, column] = (THINGS[mark.text], *order) if readable else IGNORE
    return labels


class PatchLoss(nn.Module):
    """Cross entropy of the four heads, summed over the labelled patches."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.thing = nn.Linear(hidden_size, len(THINGS))
        self.place = nn.Linear(hidden_size, PLACES)
        self.line = nn.Linear(hidden_size, LINES)
        self.colour = nn.Linear(hidden_size, len(SHADES))

    def forward(self, model: InternVL, batch: Batch) -> Tensor:
        """The sum over ``count`` patches, float32; empty patches weigh less."""
        return self.over(model.vision_model(batch.pixel_values, model.config.select_layer), batch)

    def over(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The same over the encoder's output (tiles, 1 + patches, hidden), for a loss that needs it for more."""
        assert batch.patch_labels is not None, "the encoder of samples adds patch labels"
        hidden = hidden[:, 1:]
        things, places, lines, colours = batch.patch_labels.to(hidden.device).unbind(-1)
        weights = hidden.new_full((len(THINGS),), 1.0, dtype=torch.float32)
        weights[0] = EMPTY_WEIGHT
        return (
            _sum(self.thing(hidden), things, weights)
            + ORDER_WEIGHT * _sum(self.place(hidden), places)
            + ORDER_WEIGHT * _sum(self.line(hidden), lines)
            + ORDER_WEIGHT * _sum(self.colour(hidden), colours)
        )

    def count(self, batches: Sequence[Batch]) -> int:
        """Patches with something on them."""
        return int(sum((batch.patch_labels[..., 0] > 0).sum() for batch in batches if batch.patch_labels is not None))


def _sum(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    return F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), weight=weights, ignore_index=IGNORE, reduction="sum"
    )
