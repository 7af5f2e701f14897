"""One or two short lines, big and clean, in one tile: the first step of learning to read."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from ...records import PatchAnnotation
from .. import canvas, fonts, lexicon, pages
from ..base import QA, Annotated


def token(rng: random.Random, split: str, longest: int) -> str:
    """A word, number or random string of at most ``longest`` characters."""
    while True:
        style = rng.random()
        if style < 0.4:
            text = lexicon.word(rng, split)
        elif style < 0.55:
            text = lexicon.number(rng, split)
        else:
            text = lexicon.random_text(rng, split, rng.randint(1, longest))
        if len(text) <= longest:
            return text


def draw_annotated(rng: random.Random, split: str) -> Annotated:
    """One line of up to 8 characters, or two of up to 4, on about 112 x 112 pixels, and where its characters are."""
    two = rng.random() < 0.25
    width, height = rng.randint(104, 120), rng.randint(104, 120)
    ink, paper = canvas.ink_and_paper(rng)
    path = fonts.pick(rng, split)
    lines = [token(rng, split, 4), token(rng, split, 4)] if two else [token(rng, split, 8)]
    image = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(image)
    row = height // len(lines)
    largest = rng.randint(24, 44)
    font = canvas.fit(path, max(lines, key=len), width - 10, row - 8, largest)
    patch_annotations: list[PatchAnnotation] = []
    for i, line in enumerate(lines):
        left, _, right, _ = canvas.size_of(font, line)
        if right - left > width - 6:
            font = canvas.fit(path, line, width - 8, row - 8, int(font.size))
        x, y = canvas.anywhere(rng, font, line, (width, row), 3)
        y += i * row
        pen.text((x, y), line, font=font, fill=ink)
        patch_annotations += canvas.annotate_text(font, line, (x, y), image.size, line=i)
    if rng.random() < 0.2:
        image = canvas.turned(rng, image, paper, 3)
    questions = [QA(rng.choice(pages.READ), "\n".join(lines), "read")]
    text = rng.choice(lines)
    if rng.random() < 0.3:
        where = f" of line {lines.index(text) + 1}" if two else ""
        which, character = ("first", text[0]) if rng.random() < 0.5 else ("last", text[-1])
        questions.append(QA(f"What is the {which} character{where}?", character, "character", main=False))
    return canvas.damage(rng, image, 0.08), questions, patch_annotations
