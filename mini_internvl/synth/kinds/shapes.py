"""Coloured shapes: counting, colour, kind, relations, size, place, and regions given as boxes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

from ...records import PatchAnnotation
from ..base import QA, Annotated, wordings
from ..scene import SHAPE_COLOURS, SHAPES, Scene, Shape, compose, unique

ASK = wordings("shapes")

ORDERS = (("left to right", 0, 1), ("right to left", 0, -1), ("top to bottom", 1, 1), ("bottom to top", 1, -1))
"""How it is said, axis, sign."""
SIDES = ("left of", "right of", "above", "below")


def article(text: str) -> str:
    """``a red circle`` or ``an orange star``."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _offset(first: Shape, second: Shape, side: str) -> float:
    """How far the first stands on that side of the second, in pixels."""
    (ax, ay), (bx, by) = first.centre, second.centre
    return {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}[side]


def count(rng: random.Random, scene: Scene) -> QA:
    """Counting all, a colour, a kind, or a colour and kind; 0 now and then."""
    shapes, style = scene.shapes, rng.random()
    if style < 0.35:
        return QA(rng.choice(ASK["count_all"]), str(len(shapes)), "count")
    some = rng.choice(shapes)
    absent = rng.random() < 0.15
    colour = rng.choice(SHAPE_COLOURS) if absent else some.colour
    name = rng.choice(SHAPES) if absent else some.name
    plural = "crosse" if name == "cross" else name
    if style < 0.6:
        wording, subject, total = "count_colour", colour, sum(s.colour == colour for s in shapes)
    elif style < 0.8:
        wording, subject, total = "count", plural, sum(s.name == name for s in shapes)
    else:
        label = f"{colour} {name}"
        wording, subject, total = "count", f"{colour} {plural}", sum(s.label == label for s in shapes)
    return QA(rng.choice(ASK[wording]).format(subject), str(total), "count")


def _of_the_only(known: str, asked: str) -> Callable[[random.Random, Scene], QA | None]:
    """Asks for an attribute of a shape that is alone in another (``"name"``, ``"colour"``)."""

    def ask(rng: random.Random, scene: Scene) -> QA | None:
        once = unique(scene.shapes, known)
        if not once:
            return None
        shape = rng.choice(once)
        return QA(rng.choice(ASK[asked]).format(getattr(shape, known)), getattr(shape, asked), asked)

    return ask


colour, name = _of_the_only("name", "colour"), _of_the_only("colour", "name")


def there(rng: random.Random, scene: Scene) -> QA:
    """Whether something is in the image; half of the answers are No."""
    label = rng.choice(scene.shapes).label
    if rng.random() < 0.5:
        label = _near_miss(rng, scene)
    return _there(rng.choice(ASK["there"]), scene, label)


def _near_miss(rng: random.Random, scene: Scene) -> str:
    """The colour or the kind of a shape with any other kind or colour; now and then it is there after all."""
    near = rng.choice(scene.shapes)
    other = rng.random() < 0.5
    return f"{near.colour} {rng.choice(SHAPES)}" if other else f"{rng.choice(SHAPE_COLOURS)} {near.name}"


def _there(wording: str, scene: Scene, label: str) -> QA:
    """Whether the label is in the image."""
    labels = {s.label for s in scene.shapes}
    return QA(wording.replace("a {0}", article(label)), "Yes" if label in labels else "No", "exist")


def side(rng: random.Random, scene: Scene) -> QA | None:
    """Whether one shape is left of, right of, above or below another, clearly one or the other."""
    found = _clear_side(rng, scene)
    return _side(rng.choice(ASK["side"]), *found) if found else None


def _clear_side(rng: random.Random, scene: Scene) -> tuple[Shape, Shape, str] | None:
    """Two shapes and a side on which the first clearly does or does not stand of the second."""
    once = unique(scene.shapes)
    for _ in range(4 if len(once) > 1 else 0):
        first, second = rng.sample(once, 2)
        where = rng.choice(SIDES)
        if abs(_offset(first, second, where)) > (first.size + second.size) / 3:
            return first, second, where
    return None


def _side(wording: str, first: Shape, second: Shape, where: str) -> QA:
    """Whether the first shape stands on that side of the second."""
    answer = "Yes" if _offset(first, second, where) > 0 else "No"
    return QA(wording.format(first.label, second.label, where), answer, "relation")


def opposed(rng: random.Random, scene: Scene) -> list[QA]:
    """Pairs of questions that differ only in what the image shows, one answered Yes and one No."""
    wording, labels = rng.choice(ASK["there"]), [s.label for s in scene.shapes]
    absent = _near_miss(rng, scene)
    while absent in labels:
        absent = _near_miss(rng, scene)
    made = [_there(wording, scene, rng.choice(labels)), _there(wording, scene, absent)]
    found = _clear_side(rng, scene)
    if found:
        (first, second, where), wording = found, rng.choice(ASK["side"])
        made += [_side(wording, first, second, where), _side(wording, second, first, where)]
    return made


def neighbour(rng: random.Random, scene: Scene) -> QA | None:
    """What stands on one side of a shape, where exactly one other does and no other is near the line."""
    once = unique(scene.shapes)
    for shape in rng.sample(once, len(once)):
        for where in rng.sample(SIDES, 4):
            offsets = [(_offset(s, shape, where), s) for s in scene.shapes if s is not shape]
            there = [s for o, s in offsets if o > shape.size / 3]
            if len(there) == 1 and all(abs(o) > shape.size / 3 for o, _ in offsets):
                return QA(rng.choice(ASK["next"]).format(shape.label, where), there[0].label, "neighbour")
    return None


def size(rng: random.Random, scene: Scene) -> QA | None:
    """The larger or smaller of two shapes of clearly different size."""
    once = unique(scene.shapes)
    pairs = [(a, b) for a in once for b in once if a.size > 1.3 * b.size]
    if not pairs:
        return None
    large, small = rng.choice(pairs)
    first, second = (large, small) if rng.random() < 0.5 else (small, large)
    wanted, wordings = (large, ASK["larger"]) if rng.random() < 0.6 else (small, ASK["smaller"])
    return QA(rng.choice(wordings).format(first.label, second.label), wanted.label, "size")


def place(rng: random.Random, scene: Scene) -> QA | None:
    """The quadrant of a shape that stands clearly in one."""
    width, height = scene.image.size
    clear = [s for s in unique(scene.shapes)
             if abs(s.centre[0] / width - 0.5) > 0.1 and abs(s.centre[1] / height - 0.5) > 0.1]  # fmt: skip
    if not clear:
        return None
    shape = rng.choice(clear)
    row = "top" if shape.centre[1] < height / 2 else "bottom"
    column = "left" if shape.centre[0] < width / 2 else "right"
    return QA(rng.choice(ASK["place"]).format(shape.label), f"{row} {column}", "place")


def region(rng: random.Random, scene: Scene) -> QA:
    """The shape in a box given in text, answered with the box repeated."""
    shape = rng.choice(scene.shapes)
    box = scene.box(shape)
    return QA(rng.choice(ASK["region"]).format(box), f"<ref>{shape.label}</ref><box>{box}</box>", "region")


def listing(rng: random.Random, scene: Scene) -> QA | None:
    """All shapes in an order that the eye can tell: much to learn from for one question."""
    how, axis, sign = rng.choice(ORDERS)
    ordered = sorted(scene.shapes, key=lambda s: sign * s.centre[axis])
    gaps = [abs(a.centre[axis] - b.centre[axis]) for a, b in itertools.pairwise(ordered)]
    if min(gaps, default=9.0) < 5:
        return None
    return QA(rng.choice(ASK["list"]).format(how), ", ".join(s.label for s in ordered), "list", main=False)


Asker = tuple[Callable[[random.Random, Scene], QA | None], int]
ASKERS: tuple[Asker, ...] = ((count, 5), (colour, 4), (name, 3), (there, 3), (side, 4), (neighbour, 2), (size, 2),
                             (place, 3), (region, 1))  # fmt: skip
"""What is asked of test images, and how often."""
OPEN = tuple(asker for asker in ASKERS if asker[0] not in (there, side))  # without those that are answered Yes or No


def questions(rng: random.Random, scene: Scene, wanted: int, askers: Sequence[Asker] = ASKERS) -> list[QA]:
    """Up to ``wanted`` different questions about a scene."""
    made: dict[str, QA] = {}
    weights = [w for _, w in askers]
    for _ in range(4 * wanted):
        qa = rng.choices(askers, weights=weights)[0][0](rng, scene)
        if qa is not None:
            made.setdefault(qa.question, qa)
        if len(made) == wanted:
            break
    return list(made.values()) or [count(rng, scene)]


def patch_annotations(scene: Scene) -> list[PatchAnnotation]:
    """Where the shapes are; in a scene of one tile also their numbers from the left (place) and from the top (line)."""
    width, height = scene.image.size
    one_tile = max(width, height) <= 112
    across, down = (sorted(scene.shapes, key=lambda s: s.centre[axis]) for axis in (0, 1))
    return [PatchAnnotation(text=s.name, box=(s.box[0] / width, s.box[1] / height, s.box[2] / width, s.box[3] / height),
                            colour=s.colour, place=across.index(s) if one_tile else None,
                            line=down.index(s) if one_tile else None) for s in scene.shapes]  # fmt: skip


def draw_annotated(rng: random.Random, split: str) -> Annotated:
    """A scene with its questions, and where its shapes are."""
    scene = compose(rng)
    if split == "test":
        return scene.image, questions(rng, scene, 1), patch_annotations(scene)
    made = [*opposed(rng, scene), *questions(rng, scene, rng.randint(4, 6), OPEN)]
    made = list({qa.question: qa for qa in made}.values())
    listed = listing(rng, scene)
    return scene.image, [*made, listed] if listed else made, patch_annotations(scene)


def label(questions: Sequence[QA], annotations: Sequence[PatchAnnotation]) -> str | None:
    """How many shapes there are."""
    return str(len(annotations))
