"""Finding shapes: ``Detect <ref>...</ref>`` answered with a box, and naming what is in a given box."""

from __future__ import annotations

import random

from ..base import QA, Drawn, wordings
from ..scene import Scene, Shape, compose, unique
from .shapes import region

ASK = wordings("boxes")


def _expressions(scene: Scene) -> list[tuple[str, Shape]]:
    """Expressions that fit exactly one shape: colour and name, name alone, colour alone."""
    said = {"label": "the {0.label}", "name": "the {0.name}", "colour": "the {0.colour} shape"}
    once = {attribute: unique(scene.shapes, attribute) for attribute in said}
    return [(wording.format(shape), shape) for shape in scene.shapes for attribute, wording in said.items()
            if shape in once[attribute]]  # fmt: skip


def draw(rng: random.Random, split: str) -> Drawn:
    """A scene with two to five questions, most of them about where something is."""
    while True:
        scene = compose(rng)
        expressions = _expressions(scene)
        if expressions:
            break
    wanted = 1 if split == "test" else rng.randint(2, 4)
    made = []
    for expression, shape in rng.sample(expressions, min(wanted, len(expressions))):
        answer = f"<ref>{expression}</ref><box>{scene.box(shape)}</box>"
        made.append(QA(rng.choice(ASK["detect"]).format(expression), answer, "detect"))
    made.append(region(rng, scene))
    if split == "test" and rng.random() < 0.75:
        made.pop()
    return scene.image, made
