"""Handwritten digits: one as multiple choice or named directly, or a row of two to four to read."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ...records import PatchAnnotation
from .. import canvas, glyphs
from ..base import QA, Drawn, answer_of, wordings

ASK = wordings("digits")

NAMES = tuple(str(d) for d in range(10))


def draw(rng: random.Random, split: str) -> Drawn:
    """One digit on about 112 x 112 pixels, or a row on 112 x 112 to 224 x 112."""
    images, labels = glyphs.digits(split)
    count = rng.choice((1, 1, 1, 2, 3, 4))
    wide = 112 if count <= 2 else 224
    width, height = wide - rng.randint(0, wide // 12), 112 - rng.randint(0, 8)
    ink, paper = canvas.ink_and_paper(rng)
    image = canvas.background(rng, width, height, paper, 12)
    side = rng.randint(64, min(width, height)) if count == 1 else min(width // count, rng.randint(44, 60))
    left = rng.randint(0, width - side * count)
    read = ""
    for i in range(count):
        at = rng.randrange(len(labels))
        top = rng.randint(0, height - side) if count == 1 else (height - side) // 2 + rng.randint(-8, 8)
        glyphs.place(images[at], image, (left + i * side, top, side), ink)
        read += str(int(labels[at]))
    image = canvas.damage(rng, image, 0.1)
    if count > 1:
        questions = [QA(rng.choice(ASK["read"]), read, "read")]
        if split == "train":
            questions.append(QA("How many digits are there?", str(count), "count", main=False))
            at = rng.randrange(count)
            where = ("first", "second", "third", "fourth")[at]
            questions.append(QA(f"What is the {where} digit?", read[at], "part", main=False))
        return image, questions
    questions = [glyphs.choices(rng, rng.choice(ASK["which"]), read, NAMES), QA(rng.choice(ASK["which"]), read, "name")]
    other = read if rng.random() < 0.5 else rng.choice(NAMES)
    question = rng.choice(ASK["verify"]).format(other)
    questions.append(QA(question, "Yes" if other == read else "No", "verify", main=False))
    return image, questions


def label(questions: Sequence[QA], annotations: Sequence[PatchAnnotation]) -> str | None:
    """The digit, where there is one alone."""
    return answer_of(questions, "name")
