"""Lines of letters and digits at free places, black on white: the second lesson of the loss over patches."""

from __future__ import annotations

import random

from PIL import Image

from ...records import PatchAnnotation
from .. import lexicon, pages
from ..base import QA
from .lines import asked

CHARACTERS = lexicon.DIGITS + lexicon.UPPER + lexicon.LOWER
STYLE = pages.Style(sizes=((16, 28),), coloured=False, text=pages.of_characters(CHARACTERS))


def draw_marked(rng: random.Random, split: str) -> tuple[Image.Image, list[QA], tuple[PatchAnnotation, ...]]:
    """One to six lines of up to six characters on about 112 x 112 pixels."""
    return asked(rng, pages.compose(rng, split, STYLE))
