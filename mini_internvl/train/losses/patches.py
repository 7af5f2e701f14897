"""The loss over patches: what stands on every patch of an image, for an encoder that starts from nothing.

A language model's answers say little about where and what a fresh encoder should look at: it takes very many of them
before it distinguishes letters. Here every patch has a label of its own, since we drew the image: the character or
shape that covers it most, its place in its line (of a shape: from the left), the line (of a shape: from the top), and
its colour. Four linear heads on the encoder's output learn them; they are thrown away after the stage. The pretraining
of InternViT plays this part for the released sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_internvl import synth
from mini_internvl.inputs.prepare import CutImage
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import LossSettings, Recipe, SourceRecipe, StageRecipe
from mini_internvl.records import Batch, PatchAnnotation, Sample
from mini_internvl.synth.canvas import COLOURS
from mini_internvl.synth.scene import SHAPES
from mini_internvl.train.learner import ImageFeatures

IGNORE = -100
REACHES = ("vision",)
THINGS = {text: i for i, text in enumerate(["", *map(chr, range(33, 127)), "€", "£", *SHAPES, "bar", "point", "slice"])}
"""Label of what an annotation shows; 0 is the bare background."""
SHADES = {name: i for i, name in enumerate(COLOURS)}  # label of a colour
PLACES, LINES = 24, 8  # places in a line and lines that have a label; later ones share the last
SMALLEST = 0.4  # height in patches below which a thing is too small to be asked for
EMPTY_WEIGHT = 0.15  # weight of an empty patch
ORDER_WEIGHT = 0.3  # weight of the losses over place and line


def patch_labels(
    patch_annotations: Sequence[PatchAnnotation], grid: tuple[int, int], thumbnail: bool, side: int
) -> Tensor:
    """Labels of every patch of every tile: ``grid`` is (columns, rows) of tiles of ``side`` by ``side`` patches, a
    thumbnail of the whole image is a last tile.

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
    """(height, width, 4) labels; a patch belongs to the annotation that covers most of it."""
    labels = np.full((height, width, 4), IGNORE, np.int64)
    labels[..., 0] = 0
    covered = np.zeros((height, width))
    for one in patch_annotations:
        left, right = (min(max(v * width, 0.0), width) for v in (one.box[0], one.box[2]))
        top, bottom = (min(max(v * height, 0.0), height) for v in (one.box[1], one.box[3]))
        readable = bottom - top >= SMALLEST and one.text in THINGS
        order = [IGNORE if n is None else min(n, most - 1) for n, most in ((one.place, PLACES), (one.line, LINES))]
        order.append(SHADES.get(one.colour or "", IGNORE))
        for row in range(int(top), min(height, int(np.ceil(bottom)))):
            for column in range(int(left), min(width, int(np.ceil(right)))):
                across = min(right, column + 1) - max(left, column)
                down = min(bottom, row + 1) - max(top, row)
                if across > 0.12 and down > 0.15 and across * down > covered[row, column]:
                    covered[row, column] = across * down
                    labels[row, column] = (THINGS[one.text], *order) if readable else IGNORE
    return labels


@dataclass(frozen=True, kw_only=True)
class Settings(LossSettings):
    """Settings of the loss over patches: its weight alone. Beside the answers both sums are divided by what the answers
    count, so a smaller count (``reduction: square`` or ``sample``) makes the patch loss relatively larger."""


def targets(
    sample: Sample, images: Sequence[CutImage], config: VLMConfig, settings: Settings, *, auxiliary: bool
) -> Mapping[str, Tensor]:
    """``patches``: (tiles, patches, 4) labels. A sample needs annotations of one image, else it has no labels beside
    another loss, and alone is a ValueError."""
    side = config.image_size // config.vision.patch_size
    if sample.patch_annotations and len(images) == 1:
        return {"patches": patch_labels(sample.patch_annotations, images[0].grid, images[0].thumbnail, side)}
    if auxiliary:
        return {"patches": torch.full((sum(len(image.tiles) for image in images), side * side, 4), IGNORE)}
    raise ValueError(
        "no patch annotations of one image, which the patches loss needs; use synth kinds that have them: "
        + ", ".join(synth.annotated_kinds())
    )


def held_out(recipe: Recipe, stage: StageRecipe) -> tuple[SourceRecipe, ...]:
    """Those held-out sources, and the test splits of the stage's own, that have patch annotations."""
    tests = [dataclasses.replace(source, split="test") for source in stage.data]
    names = {source.name: source for source in (*recipe.held_out, *tests) if source.name in synth.annotated_kinds()}
    return tuple(names.values())


class Loss(nn.Module):
    """Cross entropy of the four heads, summed over the labelled patches; empty patches weigh less."""

    def __init__(self, settings: Settings, config: VLMConfig) -> None:
        super().__init__()
        hidden_size = config.vision.hidden_size
        self.thing = nn.Linear(hidden_size, len(THINGS))
        self.place = nn.Linear(hidden_size, PLACES)
        self.line = nn.Linear(hidden_size, LINES)
        self.colour = nn.Linear(hidden_size, len(SHADES))

    def forward(self, model: InternVL, batch: Batch, images: ImageFeatures) -> Tensor:
        """The sum over ``count`` patches, float32."""
        hidden = images.vision[:, 1:]
        things, places, lines, colours = batch.extras["patches"].unbind(-1)
        weights = hidden.new_full((len(THINGS),), 1.0, dtype=torch.float32)
        weights[0] = EMPTY_WEIGHT
        return (
            _sum(self.thing(hidden), things, weights)
            + ORDER_WEIGHT * _sum(self.place(hidden), places)
            + ORDER_WEIGHT * _sum(self.line(hidden), lines)
            + ORDER_WEIGHT * _sum(self.colour(hidden), colours)
        )

    def count(self, batch: Batch) -> float:
        """Patches with something on them."""
        return float((batch.extras["patches"][..., 0] > 0).sum())


def _sum(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    return F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), weight=weights, ignore_index=IGNORE, reduction="sum"
    )
