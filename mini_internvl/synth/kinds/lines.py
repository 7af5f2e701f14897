"""Lines of words, numbers and codes at free places in any size and colour, one tile, every character's place known."""

from __future__ import annotations

import random
from functools import partial

from .. import pages
from .text_easy import token


def text(rng: random.Random, split: str) -> str:
    """One word, number or code, or a few."""
    line = token(rng, split, 8)
    while rng.random() < 0.5 and len(line) < pages.MAX_LINE_CHARACTERS:
        line += " " + token(rng, split, 8)
    return line


draw_annotated = partial(pages.draw, sizes=((10, 16), (12, 24), (16, 44)), coloured=True, text=text)
