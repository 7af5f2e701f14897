"""Boxes in answers: how the official scorer reads them, and intersection over union in two conventions.

The reading is stricter than :func:`mini_internvl.inputs.boxes.parse`: only the first bracketed text with four fields
counts, and it must be valid JSON of the form ``[[x1, y1, x2, y2]]``. A flat list, two boxes in one outer list, five
numbers, or an earlier bracket such as "[x]" lose the answer.
Unusual: IoU counts pixels inclusively (+1 on every side), so two equal points have an IoU of 1.
Source: InternVL ``rs_det/caculate.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom
THRESHOLD = 0.5  # a box counts above it, not at it
FIELDS = 4


def first_brackets(text: str) -> str | None:
    """The first text in brackets, on one line, with at least three commas inside; ``None`` without one.

    It runs from an opening bracket over three commas to the next closing one, whatever stands between.
    """
    for line in text.split("\n"):
        start = line.find("[")
        end = _end(line, start) if start >= 0 else 0
        if end:
            return line[start:end]
    return None


def _end(line: str, start: int) -> int:
    """Where the brackets opened at ``start`` end; 0 when they do not."""
    place = start
    while place < len(line) and line[place] == "[":
        place += 1
    for mark in (*"," * (FIELDS - 1), "]"):
        place = line.find(mark, place) + 1
        if not place:
            return 0
    while place < len(line) and line[place] == "]":
        place += 1
    return place


def read_box(text: str, width: float, height: float) -> Box | None:
    """An answer's box (0 to 1000) in the image's pixels, clipped; ``None`` where the official scorer has none."""
    found = first_brackets(text)
    if found is None:
        return None
    try:
        left, top, right, bottom = json.loads(found)[0]
        return _pixels(left, width), _pixels(top, height), _pixels(right, width), _pixels(bottom, height)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):  # no JSON, or of another form
        return None


def _pixels(value: float, side: float) -> float:
    return min(max(value / 1000 * side, 0), side)


def iou(first: Sequence[float], second: Sequence[float], *, inclusive: bool = True) -> float:
    """Intersection over union of two boxes (left, top, right, bottom) in the same unit.

    ``inclusive`` counts both end pixels, as the official scorer does; otherwise the areas are plain. The value is 0 to
    1 for boxes whose corners are in order, 0 for an empty union, and NaN where a coordinate is.
    """
    more = 1 if inclusive else 0
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right, bottom = min(first[2], second[2]), min(first[3], second[3])
    common = max(0, right - left + more) * max(0, bottom - top + more)
    areas = [(box[2] - box[0] + more) * (box[3] - box[1] + more) for box in (first, second)]
    union = areas[0] + areas[1] - common
    return common / union if union else 0.0


def grounding_right(text: str, gold: Sequence[float], size: Sequence[float]) -> bool:
    """Whether an answer's box overlaps the gold box (pixels) by more than one half; ``size`` is width and height."""
    box = read_box(text, size[0], size[1])
    return box is not None and iou(box, gold) > THRESHOLD


def match_boxes(golds: Sequence[Sequence[float]], answers: Sequence[Sequence[float]]) -> list[float]:
    """The overlaps of gold boxes with answered ones, each box in one pair at most, the best pairs first.

    IoU is plain (not inclusive); pairs that do not overlap are left out. Corners out of order give an empty box.
    """
    if not golds or not answers:
        return []
    first, second = (np.asarray(side, np.float64).reshape(-1, 4) for side in (golds, answers))
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(side[:, 2:] - side[:, :2], 0, None).prod(axis=1) for side in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - common
    overlap = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    found, taken_rows, taken_columns = list[float](), set[int](), set[int]()
    for place in np.argsort(-overlap, axis=None, kind="stable"):
        row, column = divmod(int(place), len(answers))
        if overlap[row, column] <= 0:
            break
        if row not in taken_rows and column not in taken_columns:
            taken_rows.add(row)
            taken_columns.add(column)
            found.append(float(overlap[row, column]))
    return found
