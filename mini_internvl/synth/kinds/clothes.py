"""Pieces of clothing (Fashion-MNIST): multiple choice, direct naming, yes or no."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image

from ...records import PatchAnnotation
from .. import canvas, glyphs
from ..base import QA, Drawn, answer_of, wordings

ASK = wordings("clothes")

CLASSIFY = "Classify the image within one of the given classes: {0}. Answer with one word or short phrase."
_FEET = {"sandal", "sneaker", "ankle boot"}


def _is_it(name: str) -> str:
    """A yes/no question about a class with the right article."""
    if name == "trousers":
        return "Does the picture show trousers?"
    return f"Is this {'an' if name[0] in 'aeiou' else 'a'} {name}?"


def draw(rng: random.Random, split: str) -> Drawn:
    """One piece on about 112 x 112 pixels, in grey on black as in the data set or tinted on another background."""
    images, classes = glyphs.clothes(split)
    at = rng.randrange(len(classes))
    name = glyphs.CLOTHES[int(classes[at])]
    width, height = 112 - rng.randint(0, 8), 112 - rng.randint(0, 8)
    if rng.random() < 0.4:
        ink, paper = (255, 255, 255), (0, 0, 0)
    else:
        ink, paper = canvas.ink_and_paper(rng)
    image = Image.new("RGB", (width, height), paper)
    side = rng.randint(76, min(width, height))
    box = (rng.randint(0, width - side), rng.randint(0, height - side), side)
    glyphs.place(images[at], image, box, ink)
    questions = [
        glyphs.choices(rng, rng.choice(ASK["which"]), name, glyphs.CLOTHES),
        QA(rng.choice(ASK["name"]), name, "name"),
    ]
    if rng.random() < 0.4:
        listed = rng.sample(glyphs.CLOTHES, len(glyphs.CLOTHES))
        questions.append(QA(CLASSIFY.format(", ".join(listed)), name, "classify"))
    other = name if rng.random() < 0.5 else rng.choice(glyphs.CLOTHES)
    questions.append(QA(_is_it(other), "Yes" if other == name else "No", "verify", main=False))
    worn = "Yes" if name in _FEET else "No"
    if rng.random() < 0.3:
        questions.append(QA(rng.choice(ASK["feet"]), worn, "feet", main=False))
    return canvas.damage(rng, image, 0.08), questions


def label(questions: Sequence[QA], annotations: Sequence[PatchAnnotation]) -> str | None:
    """What the piece is called."""
    return answer_of(questions, "name")
