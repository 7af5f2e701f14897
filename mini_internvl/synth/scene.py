"""Scenes of coloured shapes without overlap: drawn at twice the size and reduced, with exact boxes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from PIL import Image, ImageDraw

from . import canvas

SHAPES = ("circle", "square", "triangle", "star", "pentagon", "hexagon", "diamond", "cross", "ring")
SHAPE_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white")
CANVASES = ((112, 112, 14), (224, 112, 3), (112, 224, 2), (224, 224, 1))  # width, height, weight
_PAPERS: tuple[tuple[canvas.RGB, frozenset[str]], ...] = (
    ((250, 250, 250), frozenset({"white"})), ((236, 232, 220), frozenset({"white"})),
    ((212, 224, 236), frozenset({"white"})), ((190, 192, 196), frozenset({"white"})),
    ((28, 28, 32), frozenset({"black", "brown"})), ((58, 62, 74), frozenset({"black", "brown"})),
    ((226, 240, 222), frozenset({"white"})), ((44, 52, 40), frozenset({"black", "brown"})),
)  # fmt: skip
"""Backgrounds with the shape colours that would be hard to see on them."""


@dataclass(frozen=True)
class Shape:
    """One drawn shape.

    ``box`` is left, top, right, bottom of the ink and ``size`` the diameter of the circle that the shape is made in,
    in pixels.
    """

    name: str
    colour: str
    box: tuple[float, float, float, float]
    size: float

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def label(self) -> str:
        """Colour and name, for instance ``red circle``."""
        return f"{self.colour} {self.name}"


@dataclass(frozen=True)
class Scene:
    """An image with its shapes."""

    image: Image.Image
    shapes: tuple[Shape, ...]

    def box(self, shape: Shape) -> str:
        """The shape's box as the model writes it: integers 0 to 1000 of width and height."""
        width, height = self.image.size
        scale = (1000 / width, 1000 / height) * 2
        scaled = (min(1000, max(0, round(v * s))) for v, s in zip(shape.box, scale, strict=True))
        return "[[" + ", ".join(map(str, scaled)) + "]]"


def unique(shapes: Sequence[Shape], attribute: str = "label") -> list[Shape]:
    """Shapes whose attribute (``label``, ``name`` or ``colour``) no other shape has."""
    look = attrgetter(attribute)
    counts = Counter(map(look, shapes))
    return [shape for shape in shapes if counts[look(shape)] == 1]


def _corners(radii: Sequence[float], turn: float = 0) -> list[tuple[float, float]]:
    """Corner points around a circle, each at its distance from the middle."""
    angles = [2 * math.pi * i / len(radii) + turn for i in range(len(radii))]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]


_ARM = 0.36
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0, -0.95), (0.95, 0.8), (-0.95, 0.8)],
    "star": _corners((1, 0.42) * 5), "pentagon": _corners((1,) * 5), "hexagon": _corners((1,) * 6, math.pi / 6),
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "cross": [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM), (_ARM, 1), (-_ARM, 1),
              (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
}  # fmt: skip
"""Corner points in the unit circle of the shapes that are not round."""


def _place(rng: random.Random, width: int, height: int, sizes: list[float]) -> list[tuple[float, float, float]]:
    """Centres and diameters without overlap; drops what finds no room."""
    placed: list[tuple[float, float, float]] = []
    for size in sizes:
        for _ in range(40):
            x = rng.uniform(size / 2 + 2, width - size / 2 - 2)
            y = rng.uniform(size / 2 + 2, height - size / 2 - 2)
            if all(math.hypot(x - a, y - b) > (size + d) / 2 + 3 for a, b, d in placed):
                placed.append((x, y, size))
                break
    return placed


def _paint(pen: ImageDraw.ImageDraw, name: str, x: float, y: float, size: float,
           fill: canvas.RGB) -> tuple[float, float, float, float]:  # fmt: skip
    """Draws one shape at twice the scale; returns its box in image pixels."""
    radius = size / 2
    if name in ("circle", "ring"):
        box = (x - radius, y - radius, x + radius, y + radius)
        big = [v * 2 for v in box]
        if name == "ring":
            pen.ellipse(big, outline=fill, width=max(4, int(size * 0.36)))
        else:
            pen.ellipse(big, fill=fill)
        return box
    corners = [(x + px * radius, y + py * radius) for px, py in _OUTLINES[name]]
    pen.polygon([(2 * a, 2 * b) for a, b in corners], fill=fill)
    return (min(a for a, _ in corners), min(b for _, b in corners),
            max(a for a, _ in corners), max(b for _, b in corners))  # fmt: skip


def compose(rng: random.Random, count: int | None = None) -> Scene:
    """A scene of 1 to 6 shapes; colours and names repeat often enough for counting to matter."""
    wide, high, _ = rng.choices(CANVASES, weights=[c[2] for c in CANVASES])[0]
    width, height = wide - rng.randint(0, wide // 12), high - rng.randint(0, high // 12)
    paper, hidden = rng.choice(_PAPERS)
    count = count or rng.randint(1, 6)
    base = min(width, height) * rng.uniform(0.2, 0.3)
    if count <= 2 and rng.random() < 0.5:
        base *= 1.5
    grades = (base, base * 1.5) if rng.random() < 0.5 else (base,)
    limit = 0.62 * math.sqrt(width * height / count)
    placed = _place(rng, width, height, [min(rng.choice(grades), limit) for _ in range(count)])
    usable = [c for c in SHAPE_COLOURS if c not in hidden]
    colours = rng.sample(usable, rng.randint(2, 5)) if rng.random() < 0.7 else usable
    names = rng.sample(SHAPES, rng.randint(2, 5)) if rng.random() < 0.7 else SHAPES
    big = canvas.background(rng, width, height, canvas.jitter(rng, paper, 5), 20).resize((2 * width, 2 * height))
    pen = ImageDraw.Draw(big)
    shapes = []
    for x, y, size in placed:
        name, colour = rng.choice(names), rng.choice(colours)
        box = _paint(pen, name, x, y, size, canvas.jitter(rng, canvas.COLOURS[colour], 10))
        shapes.append(Shape(name=name, colour=colour, box=box, size=size))
    return Scene(image=canvas.damage(rng, big.reduce(2), 0.1), shapes=tuple(shapes))
