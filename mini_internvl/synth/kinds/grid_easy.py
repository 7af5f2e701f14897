"""Digits on a square grid, black on white: the very first lesson, where to look for the k-th character."""

from __future__ import annotations

import random

from .. import lexicon
from ..base import QA, Drawn
from . import grid

SIDES = (2, 4, 4, 4)
COLOURS = ((0, 0, 0), (255, 255, 255))


def draw(rng: random.Random, split: str) -> Drawn:
    """Two or four rows of as many digits on 112 x 112 pixels."""
    side = rng.choice(SIDES)
    text = grid.characters(rng, split, side, lexicon.DIGITS)
    image = grid.draw_characters(rng, split, text, (112, 112), COLOURS)
    return image, [QA(grid.READ, text, "read")]
