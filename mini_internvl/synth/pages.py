"""Pages of text lines at free places, with the box of every character: what the loss over patches learns from.

Three levels, each a kind of its own, because a fresh encoder does not get started on the hardest: digits in one size,
black on white (``lines_digits``); letters and digits (``lines_plain``); any text, colour and size (``lines``).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..records import PatchAnnotation
from . import canvas, fonts, lexicon

SIDE = 112
"""Images are about one tile."""
LONGEST = 14
"""Characters after which a line gets no further word."""


@dataclass(frozen=True)
class Page:
    """An image with its text."""

    image: Image.Image
    lines: tuple[str, ...]
    """As they stand, top to bottom."""
    patch_annotations: tuple[PatchAnnotation, ...]
    """One a visible character."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """What varies from page to page."""

    sizes: tuple[tuple[int, int], ...]
    """Ranges of font sizes in pixels, one of which is drawn."""
    coloured: bool
    """Any colours and backgrounds, or black on white."""
    text: Callable[[random.Random, str], str]
    """(generator, split) -> one line."""


def of_characters(alphabet: str) -> Callable[[random.Random, str], str]:
    """Lines of one to six random characters that belong to the split."""

    def text(rng: random.Random, split: str) -> str:
        while True:
            line = "".join(rng.choices(alphabet, k=rng.randint(1, 6)))
            if len(line) < 3 or lexicon.is_test(line) == (split == "test"):
                return line

    return text


def compose(rng: random.Random, split: str, style: Style) -> Page:
    """One to six lines in one font, set by the font or at an even pitch."""
    ink, paper = canvas.ink_and_paper(rng) if style.coloured else ((0, 0, 0), (255, 255, 255))
    path = fonts.pick(rng, split)
    width, height = SIDE - rng.randint(0, 6), SIDE - rng.randint(0, 6)
    font = fonts.load(path, rng.randint(*rng.choice(style.sizes)))
    size = font.size
    if style.coloured:
        image = canvas.background(rng, width, height, paper, 16)
    else:
        image = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(image)
    leading = size * rng.uniform(1.05, 1.6)
    rows = rng.randint(1, max(1, min(6, int((height - 4) / leading))))
    x0 = rng.uniform(1, 40 if rng.random() < 0.5 else 8)
    y0 = rng.uniform(0, max(1.0, height - rows * leading - 2))
    pitch = size * rng.uniform(0.9, 1.4) if rng.random() < 0.3 else 0.0
    lines: list[str] = []
    patch_annotations: list[PatchAnnotation] = []
    for row in range(rows):
        left = x0 + (rng.uniform(0, 30) if rng.random() < 0.3 else 0)
        line, found = _set(pen, font, style.text(rng, split), (left, y0 + row * leading), pitch, ink, (width, height))
        if line:
            patch_annotations += [
                PatchAnnotation(text=c, box=box, place=place, line=len(lines)) for c, box, place in found
            ]
            lines.append(line)
    if not lines:
        return compose(rng, split, style)
    if style.coloured:
        image = canvas.damage(rng, image, 0.1)
    return Page(image=image, lines=tuple(lines), patch_annotations=tuple(patch_annotations))


def _set(pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, text: str, start: tuple[float, float],
         pitch: float, ink: canvas.RGB, size: tuple[int, int],
         ) -> tuple[str, list[tuple[str, tuple[float, float, float, float], int]]]:  # fmt: skip
    """Draws as much of a line as fits; returns it with each visible character's box (shares) and place."""
    x, y = start
    _, cap, _, base = canvas.size_of(font, "Hg")
    found = []
    done = 0
    for place, character in enumerate(text):
        advance = pitch or font.getlength(character)
        left, top, right, bottom = canvas.size_of(font, character)
        if x + max(right, advance) > size[0] - 1:
            break
        if character != " ":
            pen.text((round(x), round(y)), character, font=font, fill=ink)
            box = (x + left, y + min(top, cap + 2), x + right, y + max(bottom, base))
            found.append((character, (box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]), place))
        x += advance
        done = place + 1
    return text[:done].rstrip(), found
