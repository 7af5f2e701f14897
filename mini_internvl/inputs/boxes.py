"""Boxes: pixels <-> the family's 0..1000 integers, ``<ref>phrase</ref><box>[[x1, y1, x2, y2]]</box>`` text, drawing.

Source: the chat data format of the official documentation; paper section 3.3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from PIL import Image, ImageDraw

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""
_TAGGED = re.compile(r"(?:<ref>(.*?)</ref>\s*)?<box>\s*(\[.*?\])\s*</box>", re.DOTALL)
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


def to_thousand(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """Pixel box -> integers 0..1000 of the picture's sides.

    Raises:
        ValueError: the box has not four numbers, or its corners are swapped.
    """
    if len(box) != 4 or box[0] > box[2] or box[1] > box[3]:
        raise ValueError(f"a box is x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, not {list(box)}")
    sides = (width, height, width, height)
    x1, y1, x2, y2 = (min(1000, max(0, round(1000 * value / side))) for value, side in zip(box, sides, strict=True))
    return x1, y1, x2, y2


def to_pixels(box: Sequence[float], width: int, height: int) -> Box:
    """Integers 0..1000 -> pixel box, clipped to the picture."""
    sides = (width, height, width, height)
    x1, y1, x2, y2 = (min(float(side), max(0.0, value / 1000 * side)) for value, side in zip(box, sides, strict=True))
    return x1, y1, x2, y2


def render(phrase: str, boxes: Sequence[Sequence[int]]) -> str:
    """The tagged text of a phrase with its boxes (integers 0..1000)."""
    inner = ", ".join("[" + ", ".join(map(str, box)) + "]" for box in boxes)
    return f"<ref>{phrase}</ref><box>[{inner}]</box>"


def parse(text: str) -> list[tuple[str, list[Box]]]:
    """Every phrase with its boxes (0..1000) in a text; what is not four numbers is left out."""
    found = []
    for phrase, body in _TAGGED.findall(text):
        try:
            value = json.loads(body)
        except json.JSONDecodeError:
            continue
        rows = [value] if value and not isinstance(value[0], list) else value
        boxes = [tuple(map(float, row)) for row in rows if _is_box(row)]
        if boxes:
            found.append((phrase.strip(), boxes))
    return found  # type: ignore[return-value]


def _is_box(row: object) -> bool:
    return isinstance(row, list) and len(row) == 4 and all(isinstance(v, int | float) for v in row)


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes in the same unit; 0 when both are empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    inside = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return inside / (areas - inside) if areas > inside else 0.0


def draw(image: Image.Image, boxes: Sequence[Sequence[float]], labels: Sequence[str] = ()) -> Image.Image:
    """A copy of the picture with boxes (pixels) and their labels drawn on it."""
    image = image.convert("RGB")
    pen = ImageDraw.Draw(image)
    line = max(1, round(min(image.size) / 200))
    for i, box in enumerate(boxes):
        colour = _COLOURS[i % len(_COLOURS)]
        pen.rectangle(tuple(box), outline=colour, width=line)
        if i < len(labels):
            x, y = box[0] + line, box[1] + line
            pen.rectangle(pen.textbbox((x, y), labels[i]), fill=colour)
            pen.text((x, y), labels[i], fill="white")
    return image
