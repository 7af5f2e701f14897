"""Boxes of a picture's crops, joined in the whole picture: what a model that sees a part at a time finds in all of it.

Beside rows of crops lies ``crops.json``, as ``minivl adapt --crop`` writes it::

    {"pictures": {PATH: {"size": [width, height], "boxes": {CLASS: [[x1, y1, x2, y2], ...]}}},
     "crops": {NAME: {"picture": PATH, "corners": [left, top, right, bottom]}}}

in pixels of the whole picture; NAME is relative to the file's folder. Crops are asked for boxes of a class only where
they show one, so boxes that are made up in other crops are not counted; objects that no crop was asked for are missed.
By definition: answers have no confidence, so of two boxes of one object the larger one stays, which was cut less.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.files import read_object
from mini_internvl.inputs import boxes as written
from mini_internvl.inputs.boxes import Box
from mini_internvl.metrics.grounding import match_boxes

FILE = "crops.json"
COVERED = 0.5  # share of a box within a larger one of another crop from which both are of one object
EDGE = 0.02  # of a crop's side: a box that ends nearer to the border of its crop may go on in the next one
ALIGNED = 0.6  # overlap, along the border, of two boxes that are parts of one object
_PHRASE = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The objects of one class in one picture, in pixels."""

    picture: str  # path
    phrase: str  # the class
    size: tuple[int, int]
    gold: Sequence[Box]
    answered: Sequence[Box]  # joined
    crops: int  # that were asked

    def f1(self, least: float) -> float:
        """Precision and recall in one, of boxes that overlap by at least so much; each has one partner at most."""
        found = sum(overlap >= least for overlap in match_boxes(self.gold, self.answered))
        return 2 * found / (len(self.gold) + len(self.answered))


class Crops:
    """Which part of which picture an image shows, by ``crops.json`` in a folder; nothing where there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        known = read_object(folder / FILE) if (folder / FILE).is_file() else {"pictures": {}, "crops": {}}
        self.pictures: Mapping[str, Any] = known["pictures"]
        self.crops: Mapping[str, Any] = known["crops"]

    def part(self, images: Sequence[Any], question: str) -> dict[str, Any]:
        """What the reference of a question for the boxes of a class in one crop says of it; {} for other questions."""
        phrases = _PHRASE.findall(question)
        if not self.crops or len(images) != 1 or len(phrases) != 1 or not isinstance(images[0], str):
            return {}
        found = self.crops.get(os.path.relpath(images[0], self.folder).replace(os.sep, "/"))
        if found is None or phrases[0] not in self.pictures[found["picture"]]["boxes"]:
            return {}
        return {"phrase": phrases[0], "size": self.pictures[found["picture"]]["size"], **found}

    def complete(self, parts: Sequence[dict[str, Any]]) -> None:
        """Add to each of the parts of a split how many their picture has, and to the first of each its true boxes."""
        groups = defaultdict[tuple[str, str], list[dict[str, Any]]](list)
        for part in parts:
            groups[part["picture"], part["phrase"]].append(part)
        for (picture, phrase), some in groups.items():
            some[0]["objects"] = self.pictures[picture]["boxes"][phrase]
            for part in some:
                part["of"] = len(some)


def wholes(asked: Iterable[tuple[Mapping[str, Any], str]]) -> list[Whole]:
    """The pictures whose crops were all asked, from (reference, answer) of each question."""
    groups = defaultdict[tuple[str, str], list[tuple[Mapping[str, Any], str]]](list)
    for reference, text in asked:
        if part := reference.get("crop"):
            groups[part["picture"], part["phrase"]].append((part, text))
    found = []
    for (picture, phrase), some in groups.items():
        gold = next((part["objects"] for part, _ in some if "objects" in part), None)
        if gold is None or len(some) != some[0][0]["of"]:
            continue
        pieces = [(part["corners"], [box for _, boxes in written.parse(text) for box in boxes]) for part, text in some]
        found.append(
            Whole(
                picture=picture,
                phrase=phrase,
                size=tuple(some[0][0]["size"]),
                gold=[tuple(box) for box in gold],
                answered=join(pieces),
                crops=len(some),
            )
        )
    return found


def join(pieces: Iterable[tuple[Sequence[int], Sequence[Sequence[float]]]]) -> list[Box]:
    """Boxes in pixels of the whole picture, from (corners of a crop, boxes in thousandths of it), each object once.

    Two boxes of different crops that go on across a border become one; then a box that lies in a larger one of another
    crop by half or more is taken to be the same object.
    """
    placed = [
        _Placed(box=(left + x1, top + y1, left + x2, top + y2), corners=(left, top, right, bottom), crops={number})
        for number, ((left, top, right, bottom), boxes) in enumerate(pieces)
        for x1, y1, x2, y2 in (written.to_pixels(box, right - left, bottom - top) for box in boxes)
        if x1 < x2 and y1 < y2
    ]
    kept = list[_Placed]()
    for one in sorted(_stitched(placed), key=lambda one: -_area(one.box)):
        same = (other for other in kept if other.crops.isdisjoint(one.crops))
        if all(_common(one.box, other.box) < COVERED * _area(one.box) for other in same):
            kept.append(one)
    return [one.box for one in kept]


@dataclass(kw_only=True)
class _Placed:
    box: Box
    corners: Box  # of its crop
    crops: set[int]  # that it was seen in


def _stitched(placed: list[_Placed]) -> list[_Placed]:
    """Boxes, those that go on in the next crop made one with their other part: first to the right, then downwards."""
    for axis in (0, 1):
        done = list[_Placed]()
        for one in sorted(placed, key=lambda one: one.box[axis]):
            first = next((other for other in done if _goes_on(other, one, axis)), None)
            if first is None:
                done.append(one)
                continue
            low, high = zip(first.box, one.box, strict=True), zip(first.corners, one.corners, strict=True)
            first.box, first.corners = _around(list(low)), _around(list(high))
            first.crops |= one.crops
        placed = done
    return placed


def _goes_on(first: _Placed, second: _Placed, axis: int) -> bool:
    """Whether the first box ends at the border of its crop where the second begins at that of another."""
    across = 1 - axis
    slack = EDGE * (first.corners[axis + 2] - first.corners[axis])
    if not first.crops.isdisjoint(second.crops) or second.corners[axis] <= first.corners[axis]:
        return False
    ends = first.corners[axis + 2] - first.box[axis + 2] <= slack
    begins = second.box[axis] - second.corners[axis] <= slack
    if not ends or not begins or second.box[axis] > first.box[axis + 2] + 2 * slack:
        return False
    common = min(first.box[across + 2], second.box[across + 2]) - max(first.box[across], second.box[across])
    both = max(first.box[across + 2], second.box[across + 2]) - min(first.box[across], second.box[across])
    return common >= ALIGNED * both


def _around(pairs: list[tuple[float, float]]) -> Box:
    return min(pairs[0]), min(pairs[1]), max(pairs[2]), max(pairs[3])


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _common(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)
