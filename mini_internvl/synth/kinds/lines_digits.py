"""Lines of digits at free places, black on white: the first lesson of the loss over patches."""

from __future__ import annotations

import random

from PIL import Image

from ...records import PatchAnnotation
from .. import lexicon, pages
from ..base import QA
from .lines import asked

STYLE = pages.Style(sizes=((18, 24),), coloured=False, text=pages.of_characters(lexicon.DIGITS))


def draw_marked(rng: random.Random, split: str) -> tuple[Image.Image, list[QA], tuple[PatchAnnotation, ...]]:
    """One to six lines of up to six digits on about 112 x 112 pixels."""
    return asked(rng, pages.compose(rng, split, STYLE))
