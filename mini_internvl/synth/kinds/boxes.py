"""Finding shapes: ``Detect <ref>...</ref>`` answered with a box, and naming what is in a given box."""

from __future__ import annotations

import random

from ..base import QA, Drawn
from ..scene import Scene, Shape, compose
from .shapes import region

DETECT = ("Detect <ref>{0}</ref>", "Detect <ref>{0}</ref>", "Detect <ref>{0}</ref>.", "Locate <ref>{0}</ref>.",
          "Find <ref>{0}</ref>.", "Give the box of <ref>{0}</ref>.",
          "Please provide the bounding box coordinate of the region this sentence describes: <ref>{0}</ref>",
          )  # fmt: skip


def _expressions(scene: Scene) -> list[tuple[str, Shape]]:
    """Expressions that fit exactly one shape: colour and name, name alone, colour alone."""
    made = []
    for shape in scene.shapes:
        others = [s for s in scene.shapes if s is not shape]
        if all(s.label != shape.label for s in others):
            made.append((f"the {shape.label}", shape))
        if all(s.name != shape.name for s in others):
            made.append((f"the {shape.name}", shape))
        if all(s.colour != shape.colour for s in others):
            made.append((f"the {shape.colour} shape", shape))
    return made


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
        made.append(QA(rng.choice(DETECT).format(expression), answer, "detect"))
    made.append(region(rng, scene))
    if split == "test" and rng.random() < 0.75:
        made.pop()
    return scene.image, made
