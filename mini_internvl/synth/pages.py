"""Pages of text lines at free places, with the box of every character: what the loss over patches learns from.

Three levels, each a kind of its own, because a fresh encoder does not get started on the hardest: digits in one size,
black on white (``lines_digits``); letters and digits (``lines_plain``); any text, colour and size (``lines``).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

from ..records import PatchAnnotation
from . import canvas, fonts, lexicon
from .base import QA, Annotated

SIDE = 112  # images are about one tile
MAX_LINE_CHARACTERS = 14  # characters after which a line gets no further word
READ = ("Read the text.", "What does it say?", "What is written here?", "What text is in the picture?",
        "Read the text in the image.", "What is the text?", "Transcribe the text.")  # fmt: skip
READ_ALL = (*READ, "Read all the text.", "Write down the text in the picture.", "What are the lines of text?")

Text = Callable[[random.Random, str], str]  # (generator, split) -> one line


def of_characters(alphabet: str) -> Text:
    """Lines of one to six random characters that belong to the split."""
    return lambda rng, split: lexicon.of_split(
        split, lambda: "".join(rng.choices(alphabet, k=rng.randint(1, 6))), short_too=True
    )


def draw(rng: random.Random, split: str, *, sizes: tuple[tuple[int, int], ...], text: Text,
         coloured: bool = False) -> Annotated:  # fmt: skip
    """One to six lines in one font, set by the font or at an even pitch, with the question for all of them.

    The font size (pixels) is drawn from one of the ranges ``sizes``. Images are black on white unless ``coloured``.
    """
    ink, paper = canvas.ink_and_paper(rng) if coloured else ((0, 0, 0), (255, 255, 255))
    path = fonts.pick(rng, split)
    width, height = SIDE - rng.randint(0, 6), SIDE - rng.randint(0, 6)
    font = fonts.load(path, rng.randint(*rng.choice(sizes)))
    size = font.size
    image = canvas.background(rng, width, height, paper, 16) if coloured else Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(image)
    leading = size * rng.uniform(1.05, 1.6)
    rows = rng.randint(1, max(1, min(6, int((height - 4) / leading))))
    x0 = rng.uniform(1, 40 if rng.random() < 0.5 else 8)
    y0 = rng.uniform(0, max(1.0, height - rows * leading - 2))
    pitch = size * rng.uniform(0.9, 1.4) if rng.random() < 0.3 else 0.0
    lines: list[str] = []
    annotations: list[PatchAnnotation] = []
    for row in range(rows):
        left = x0 + (rng.uniform(0, 30) if rng.random() < 0.3 else 0)
        starts = _starts(font, text(rng, split), left, pitch, width)
        line = "".join(character for character, _ in starts).rstrip()
        if not line:
            continue
        for place, (character, x) in enumerate(starts):
            if character != " ":
                at = (x, y0 + row * leading)
                pen.text((round(x), round(at[1])), character, font=font, fill=ink)
                box = canvas.character_box(font, character, at, image.size)
                annotations.append(PatchAnnotation(text=character, box=box, place=place, line=len(lines)))
        lines.append(line)
    if not lines:
        return draw(rng, split, sizes=sizes, text=text, coloured=coloured)
    if coloured:
        image = canvas.damage(rng, image, 0.1)
    return image, [QA(rng.choice(READ_ALL), "\n".join(lines), "read")], tuple(annotations)


def _starts(font: ImageFont.FreeTypeFont, text: str, x: float, pitch: float, width: int) -> list[tuple[str, float]]:
    """As many characters of a line as fit, each with where it begins."""
    starts = []
    for character in text:
        advance = pitch or font.getlength(character)
        if x + max(canvas.size_of(font, character)[2], advance) > width - 1:
            break
        starts.append((character, x))
        x += advance
    return starts
