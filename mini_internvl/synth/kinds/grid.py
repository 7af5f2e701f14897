"""Characters on a square grid, one or a few to a cell's place: where encoder and decoder first learn to agree.

With four cells a side a cell is as large as the area of one visual token, so the k-th answer character is the k-th token's
content: the shortest way to learn what letters look like and where to look for them.
"""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from .. import canvas, fonts, lexicon
from ..base import QA

CHARACTERS = lexicon.UPPER + lexicon.CLEAR_LOWER + lexicon.DIGITS
READ = "Read the characters."
SIDES = (1, 2, 3, 4, 4, 4)


def draw(rng: random.Random, split: str) -> tuple[Image.Image, list[QA]]:
    """One to four rows of as many characters on about 112 x 112 pixels; the answer has them in reading order."""
    side = rng.choice(SIDES[1:] if split == "test" else SIDES)
    width, height = rng.randint(106, 118), rng.randint(106, 118)
    ink, paper = canvas.ink_and_paper(rng)
    image = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(image)
    path = fonts.pick(rng, split)
    cell_width, cell_height = width / side, height / side
    largest = round(min(cell_width, cell_height) * rng.uniform(0.6, 1.0))
    font = canvas.fit(path, "W", round(cell_width) - 2, round(cell_height) - 2, largest)
    while True:
        text = "".join(rng.choice(CHARACTERS) for _ in range(side * side))
        if len(text) < 3 or lexicon.is_test(text) == (split == "test"):
            break
    for place, character in enumerate(text):
        row, column = divmod(place, side)
        left, top, right, bottom = canvas.size_of(font, character)
        free_x, free_y = max(0, cell_width - (right - left)), max(0, cell_height - (bottom - top))
        x = column * cell_width + free_x * rng.uniform(0.3, 0.7) - left
        y = row * cell_height + free_y * rng.uniform(0.3, 0.7) - top
        pen.text((round(x), round(y)), character, font=font, fill=ink)
    return canvas.damage(rng, image, 0.08), [QA(READ, text, "read")]
