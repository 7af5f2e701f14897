"""Boxes: pixels <-> the family's 0..1000 integers, their tagged text in and out, drawing.

The text is ``<ref>phrase</ref><box>[[x1, y1, x2, y2], ...]</box>``.
Unusual: :func:`parse` also reads boxes without their tags, because decoding drops the tags as special tokens.
Source: the chat data format of the official documentation; paper section 3.3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]  # x1, y1, x2, y2
_NUMBER = r"\s*(-?\d{1,9}(?:\.\d+)?)\s*"
_ROW = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]")
_TAGGED = re.compile(r"(?:<ref>((?:(?!</?ref>).)*)</ref>\s*)?<box>([^<]*)</box>", re.DOTALL)
_BARE = re.compile(r"\[\s*(?:\[[^\[\]]*\][\s,]*)+\]")
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


def to_thousand(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """Pixel box -> integers 0..1000 of the image's sides, cut off outside; ValueError if corners are swapped."""
    if len(box) != 4 or not (box[0] <= box[2] and box[1] <= box[3]):
        raise ValueError(f"a box is x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, not {list(box)}")
    if width < 1 or height < 1:
        raise ValueError(f"the image of a box is {width}x{height}; it must have pixels")
    sides = (width, height, width, height)
    x1, y1, x2, y2 = (min(1000, max(0, round(1000 * value / side))) for value, side in zip(box, sides, strict=True))
    return x1, y1, x2, y2


def to_pixels(box: Sequence[float], width: int, height: int) -> Box:
    """Integers 0..1000 -> pixel box, clipped to the image."""
    sides = (width, height, width, height)
    x1, y1, x2, y2 = (min(float(side), max(0.0, value / 1000 * side)) for value, side in zip(box, sides, strict=True))
    return x1, y1, x2, y2


def render(phrase: str, boxes: Sequence[Sequence[int]]) -> str:
    """The tagged text of a phrase with its boxes (integers 0..1000)."""
    return f"<ref>{phrase}</ref>{render_boxes(boxes)}"


def render_boxes(boxes: Sequence[Sequence[int]]) -> str:
    """The tagged text of boxes (integers 0..1000) without a phrase."""
    inner = ", ".join("[" + ", ".join(map(str, box)) + "]" for box in boxes)
    return f"<box>[{inner}]</box>"


def parse(text: str) -> list[tuple[str, list[Box]]]:
    """Every phrase with its boxes (0..1000) in a text.

    With tags, the phrase is what ``<ref>`` holds ("" where there is none). In a text without any ``<box>``, boxes are
    found by their double brackets, and the phrase is what stands before them on the line. Rows that are not four
    numbers are left out, and so is a phrase without a box.
    """
    pairs: list[tuple[str, str]] = _TAGGED.findall(text)
    if "<box>" not in text:
        begin = 0
        for match in _BARE.finditer(text):
            before = text[begin : match.start()].replace("<ref>", "").replace("</ref>", "")
            pairs.append((before.rpartition("\n")[2], match.group()))
            begin = match.end()
    found = []
    for phrase, body in pairs:
        boxes = [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in _ROW.findall(body)]
        if boxes:
            found.append((phrase.strip(), boxes))
    return found


def bodies(text: str) -> list[str]:
    """What stands between each ``<box>`` and its ``</box>``."""
    return [body for _, body in _TAGGED.findall(text)]


def rows(body: str) -> list[Box] | None:
    """The boxes that a ``<box>`` holds; ``None`` where it holds anything else than lists of four numbers."""
    left = _ROW.sub("", body)
    found = [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in _ROW.findall(body)]
    return found if found and not left.strip("[], \n\t") else None


def in_order(text: str) -> str:
    """The text with left before right and top before bottom in every tagged box; what is no box stays."""

    def row(match: re.Match[str]) -> str:
        x1, y1, x2, y2 = (value.strip() for value in match.groups())
        if float(x1) <= float(x2) and float(y1) <= float(y2):
            return match[0]
        across, down = sorted((x1, x2), key=float), sorted((y1, y2), key=float)
        return f"[{across[0]}, {down[0]}, {across[1]}, {down[1]}]"

    return _TAGGED.sub(lambda tagged: _ROW.sub(row, tagged[0]), text) if "<box>" in text else text


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes in the same unit; 0 when both are empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    inside = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return inside / (areas - inside) if areas > inside else 0.0


def draw(image: Image.Image, boxes: Sequence[Sequence[float]], labels: Sequence[str] = ()) -> Image.Image:
    """A copy of the image, RGB, with boxes (pixels; swapped corners are put right) and their labels drawn on it."""
    image = image.convert("RGB")
    pen = ImageDraw.Draw(image)
    line = max(1, round(min(image.size) / 200))
    font = ImageFont.load_default(max(11, min(image.size) // 28))
    for number, (box, label) in enumerate(zip_longest(boxes, labels[: len(boxes)])):
        colour = _COLOURS[number % len(_COLOURS)]
        (left, right), (top, bottom) = sorted((box[0], box[2])), sorted((box[1], box[3]))
        pen.rectangle((left, top, right, bottom), outline=colour, width=line)
        if label:
            place = (left + 2 * line, top + 2 * line)
            x1, y1, x2, y2 = pen.textbbox(place, label, font=font)
            pen.rectangle((x1 - line, y1 - line, x2 + line, y2 + line), fill=colour)
            pen.text(place, label, fill="white", font=font)
    return image
