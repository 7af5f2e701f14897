"""Characters on a square grid, one or a few to a cell's place: where encoder and decoder first learn to agree.

With four cells a side a cell is as large as the area of one visual token, so the k-th answer character is the k-th
token's content: the shortest way to learn what letters look like and where to look for them.
"""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from .. import canvas, fonts, lexicon
from ..base import QA, Drawn

CHARACTERS = lexicon.UPPER + lexicon.CLEAR_LOWER + lexicon.DIGITS
READ = "Read the characters."
SIDES = (1, 2, 3, 4, 4, 4)


def draw(rng: random.Random, split: str) -> Drawn:
    """One to four rows of as many characters on about 112 x 112 pixels; the answer has them in reading order."""
    side = rng.choice(SIDES[1:] if split == "test" else SIDES)
    size = (rng.randint(106, 118), rng.randint(106, 118))
    colours = canvas.ink_and_paper(rng)
    text = characters(rng, split, side, CHARACTERS)
    return canvas.damage(rng, draw_characters(rng, split, text, size, colours), 0.08), [QA(READ, text, "read")]


def characters(rng: random.Random, split: str, side: int, choice: str) -> str:
    """side x side random characters that belong to the split."""
    return lexicon.of_split(split, lambda: "".join(rng.choice(choice) for _ in range(side * side)), short_too=True)


def draw_characters(
    rng: random.Random, split: str, text: str, size: tuple[int, int], colours: tuple[canvas.RGB, canvas.RGB]
) -> Image.Image:
    """The characters in one font, each near the middle of its cell."""
    ink, paper = colours
    image = Image.new("RGB", size, paper)
    pen = ImageDraw.Draw(image)
    side = round(len(text) ** 0.5)
    cell_width, cell_height = size[0] / side, size[1] / side
    largest = round(min(cell_width, cell_height) * rng.uniform(0.6, 1.0))
    font = canvas.fit(fonts.pick(rng, split), "W", round(cell_width) - 2, round(cell_height) - 2, largest)
    for place, character in enumerate(text):
        row, column = divmod(place, side)
        left, top, right, bottom = canvas.size_of(font, character)
        free_x, free_y = max(0, cell_width - (right - left)), max(0, cell_height - (bottom - top))
        x = column * cell_width + free_x * rng.uniform(0.3, 0.7) - left
        y = row * cell_height + free_y * rng.uniform(0.3, 0.7) - top
        pen.text((round(x), round(y)), character, font=font, fill=ink)
    return image
