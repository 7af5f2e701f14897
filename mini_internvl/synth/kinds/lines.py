"""Lines of words, numbers and codes at free places in any size and colour, one tile, every character's place known."""

from __future__ import annotations

import random

from PIL import Image

from ...records import PatchAnnotation
from .. import pages
from ..base import QA
from .text import READ_ALL
from .text_easy import token


def text(rng: random.Random, split: str) -> str:
    """One word, number or code, or a few."""
    line = token(rng, split, 8)
    while rng.random() < 0.5 and len(line) < pages.LONGEST:
        line += " " + token(rng, split, 8)
    return line


STYLE = pages.Style(sizes=((10, 16), (12, 24), (16, 44)), coloured=True, text=text)


def draw_marked(rng: random.Random, split: str) -> tuple[Image.Image, list[QA], tuple[PatchAnnotation, ...]]:
    """One to six lines on about 112 x 112 pixels."""
    return asked(rng, pages.compose(rng, split, STYLE))


def asked(rng: random.Random, page: pages.Page) -> tuple[Image.Image, list[QA], tuple[PatchAnnotation, ...]]:
    """The page with the question for all its text."""
    return page.image, [QA(rng.choice(READ_ALL), "\n".join(page.lines), "read")], page.patch_annotations
