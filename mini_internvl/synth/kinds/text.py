"""Dense reading: one to five lines of words, numbers and random strings in one font."""

from __future__ import annotations

import random

from PIL import ImageDraw

from .. import canvas, fonts, pages
from ..base import QA, Drawn, wordings
from .text_easy import token

ASK = wordings("text")

SIZES = ((112, 112, 3), (224, 112, 5), (336, 112, 2), (112, 224, 1), (224, 224, 2), (336, 224, 1))
"""Width, height, weight; each is near a grid of 112-pixel tiles."""
ORDINALS = ("first", "second", "third", "fourth", "fifth")


def _lines(rng: random.Random, split: str, path: str, size: int, width: int, rows: int) -> list[str]:
    """Lines of tokens that fit the width at the font size, at least one token each."""
    font = fonts.load(path, size)
    lines = []
    for _ in range(rows):
        for longest in (8, 8, 6, 4, 3, 3, 3):
            line = token(rng, split, longest)
            used = font.getlength(line)
            if used <= width:
                break
        for _ in range(rng.choice((0, 1, 2, 3, 5))):
            more = token(rng, split, 8)
            used += font.getlength(" " + more)
            if used > width:
                break
            line = f"{line} {more}"
        lines.append(line)
    return lines


def _details(rng: random.Random, lines: list[str]) -> list[QA]:
    """Questions about parts of the text; helpers of training."""
    first, last = lines[0].split(" ")[0], lines[-1].split(" ")[-1]
    made = []
    if len(lines) > 1:
        at = rng.randrange(len(lines))
        made.append(QA(rng.choice(ASK["line"]).format(at + 1, ORDINALS[at]), lines[at], "line", main=False))
        made.append(QA(rng.choice(ASK["count_lines"]), str(len(lines)), "count_lines", main=False))
    if first != lines[0] or len(lines) > 1:
        made.append(QA(rng.choice(ASK["first"]), first, "part", main=False))
        made.append(QA(rng.choice(ASK["last"]), last, "part", main=False))
    return rng.sample(made, min(len(made), rng.randint(0, 2)))


def draw(rng: random.Random, split: str) -> Drawn:
    """One to five lines on 112 x 112 up to 336 x 224 pixels; letters of about 14 to 30 pixels."""
    wide, high, _ = rng.choices(SIZES, weights=[s[2] for s in SIZES])[0]
    width, height = wide - rng.randint(0, wide // 12), high - rng.randint(0, high // 12)
    ink, paper = canvas.ink_and_paper(rng)
    path = fonts.pick(rng, split)
    size = rng.randint(15, 30 if wide > 112 else 24)
    pitch = size + rng.randint(3, 12)
    most = max(1, min(5, (height - 6) // pitch))
    rows = rng.randint(1 if rng.random() < 0.3 else (most + 1) // 2, most)
    lines = _lines(rng, split, path, size, width - 10, rows)
    image = canvas.background(rng, width, height, paper, 12)
    pen, font = ImageDraw.Draw(image), fonts.load(path, size)
    lengths = [font.getlength(line) for line in lines]
    if max(lengths) > width - 6:
        font = canvas.fit(path, lines[lengths.index(max(lengths))], width - 8, pitch, size)
        lengths = [font.getlength(line) for line in lines]
    longest = int(max(lengths))
    x = rng.randint(4, max(4, width - longest - 4))
    y = rng.randint(2, max(2, height - rows * pitch - 2))
    align = rng.choice((0.0, 0.0, 0.5, 1.0))
    for i, line in enumerate(lines):
        top = canvas.size_of(font, "Ab")[1]
        shift = int((longest - lengths[i]) * align)
        pen.text((x + shift, y + i * pitch - top + 2), line, font=font, fill=ink)
    if rng.random() < 0.12 and rows <= 3:
        image = canvas.turned(rng, image, paper, 2.5)
    questions = [QA(rng.choice(pages.READ_ALL), "\n".join(lines), "read"), *_details(rng, lines)]
    return canvas.damage(rng, image, 0.12), questions
