"""DIOR-RSVG: find the object that a phrase describes in an aerial image; accuracy at an IoU above one half.

Answers hold coordinates from 0 to 1000 and are read as strictly as the official script does: the first bracketed text
must be ``[[x1, y1, x2, y2]]`` (:mod:`mini_internvl.metrics.grounding`). IoU counts pixels inclusively. The file has no
ids: an item's id is the number of its row, from 0.
Official file: ``dior_rsvg_test.json``; its images are named relative to ``images/``. Without it the authors' own files
are read (``Annotations/*.xml`` with ``test.txt``, and for the split ``validation`` with ``val.txt``); an item's id is
the object's number then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _dior, _questions, _vqa
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen, image_folders, image_paths, locate, read_rows, with_val
from mini_internvl.benchmarks._tally import Asked, Judge, Tally, with_answers
from mini_internvl.metrics.grounding import FIELDS, Box, grounding_right, iou, read_box
from mini_internvl.records import Item, Score

TITLE = "DIOR-RSVG"
SPLITS = ("test", "validation")
PROTOCOLS = {"paper": "InternVL's script: the first [[x1, y1, x2, y2]], IoU with inclusive pixels above 0.5."}
PRIMARY_METRIC = "accuracy"
FILE = "dior_rsvg_test.json"
PREFIX = _dior.PREFIX
NEW_TOKENS = 200


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a row or object; DataError names what is wrong with the files."""
    split = chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    original = [f"{folder}/{_dior.LISTS[split]}".lstrip("/") for folder in _dior.FOLDERS]
    path = locate(root, "dior_rsvg", [*(with_val(FILE) if split == "test" else ()), *original])
    if path.name != FILE:
        folder = path.parent.parent if path.parent.name in filter(None, _dior.FOLDERS) else path.parent
        yield from _questions.items(_dior.read_original(folder, split, inside=False), max_new_tokens=NEW_TOKENS)
        return
    rows = read_rows(path, ("image", "prompt", "bbox", "size"), check=_wrong)
    images = image_paths(path, [str(row["image"]) for row in rows], *image_folders(path))
    for number, (row, image) in enumerate(zip(rows, images, strict=True)):
        reference = {"box": row["bbox"], "size": row["size"], "question": row["prompt"]}
        yield _vqa.ask(str(number), [image], PREFIX + row["prompt"], reference, max_tiles=12, max_new_tokens=NEW_TOKENS)


def _wrong(row: dict[str, Any]) -> Iterable[str]:
    if not _numbers(row["bbox"], FIELDS):
        yield "bbox is not four numbers"
    if not _numbers(row["size"], 2) or min(row["size"]) <= 0:
        yield "size is not width and height"
    if not isinstance(row["prompt"], str):
        yield "prompt is not a text"


def _numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(number, int | float) and math.isfinite(number) for number in value)
    )


@with_answers(PROTOCOLS)
def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
    """``accuracy`` (at IoU 0.5) and ``mean_iou``, in per cent; no judge is needed.

    Notes: ``unreadable`` counts answers without a box that the official script reads; they are wrong, with an IoU of 0.
    """
    tally = Tally()
    unreadable = 0
    for item, text in asked:
        box = _read(item, text)
        unreadable += box is None
        tally.add(right(item, text), "accuracy")
        overlap = 0.0 if box is None else iou(box, item.reference["box"])
        tally.add(min(1.0, max(0.0, overlap)) if math.isfinite(overlap) else 0.0, "mean_iou")
    return tally.score("dior_rsvg", items=len(asked), notes={"unreadable": unreadable})


def right(item: Item, text: str) -> bool:
    """Whether the answer's box overlaps the true one by more than one half."""
    return grounding_right(text, item.reference["box"], item.reference["size"])


def boxes(item: Item, text: str) -> tuple[list[Box], list[Box]]:
    """The true box and the answered one, if it can be read, as shares of the image."""
    answered = _read(item, text)
    return [_share(item, item.reference["box"])], [] if answered is None else [_share(item, answered)]


def _read(item: Item, text: str) -> Box | None:
    return read_box(text, *item.reference["size"])


def _share(item: Item, box: Sequence[float]) -> Box:
    width, height = item.reference["size"]
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _row(image: str, phrase: str, box: list[float], size: list[int]) -> dict[str, Any]:
    """A row of the official file, for the example."""
    name = f"DIOR-RSVG/JPEGImages/{image}.jpg"
    return {"image": name, "prompt": f"<ref>{phrase}</ref>", "bbox": box, "size": size}


EXAMPLE = WorkedExample(
    files={
        FILE: [
            _row("00001", "the red ship on the left", [80, 80, 240, 240], [800, 800]),
            _row("00001", "a small harbour", [8, 8, 9, 9.5], [800, 800]),
            _row("00002", "the 球场 below", [0, 300, 400, 600], [800, 600]),
            _row("00002", "the whole airport", [0, 0, 800, 600], [800, 600]),
            _row("00002", "a single pixel", [400, 300, 400, 300], [800, 600]),
        ]
    },
    images={
        "images/DIOR-RSVG/JPEGImages/00001.jpg": ExampleImage(width=80, height=80),
        "images/DIOR-RSVG/JPEGImages/00002.jpg": ExampleImage(width=80, height=60, seed=2),
    },
    good=[
        "<ref>the red ship on the left</ref><box>[[100, 100, 300, 300]]</box>",
        "[[10, 10, 12, 12]]",
        "It is at [[0, 500, 500, 1000]].",
        "[[-5, 0, 1200, 1000]]",
        "[[500,500,500,500]]",
    ],
    bad=["[100, 100, 300, 300]", "", "[x] [[0, 500, 500, 1000]]", "[[0, 0, 500, 500]]", "[[500,500,500,500,500]]"],
)
