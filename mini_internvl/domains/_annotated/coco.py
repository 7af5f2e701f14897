"""COCO: one JSON file with ``images``, ``categories`` and ``annotations`` (``bbox``: left, top, width, height).

The path is the file, or a folder that holds such files itself, in ``annotations/`` or in folders of splits
(``train/_annotations.coco.json``); a file's or its folder's name tells the split. Images lie beside the file, in
``images/``, or in a folder called as the file's name ends (``train2017``), there or one folder up.
Unusual: nothing is asked of a class with the region of a crowd (``iscrowd``) in a picture, for its objects are not
counted.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mini_internvl import files
from mini_internvl.benchmarks._example import ExampleImage
from mini_internvl.data import DataError, Fault
from mini_internvl.domains._annotated import LOOKED_AT, LayoutExample, Picture, find_image, size_of, split_named
from mini_internvl.inputs.boxes import Box

TITLE = "COCO"
LARGEST = 1 << 32  # bytes of a file
_HEAD = 1 << 20  # bytes in which a file shows what it is
_KEYS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[\s*\{')
_ROWS = re.compile(rb'"(messages|conversations)"\s*:')


def found(path: Path) -> bool:
    return any(_files(path))


def read(path: Path) -> Iterator[Picture | Fault]:
    every = list(_files(path))
    for file in every:
        whole = files.read_json(file, limit=LARGEST, error=DataError)
        lists = [whole.get(key) for key in ("images", "annotations", "categories")] if isinstance(whole, dict) else []
        found: list[list[Any]] = [one for one in lists if isinstance(one, list)]
        if len(found) < 3:
            raise DataError(f"{file} must hold lists under images, annotations and categories (COCO)")
        prefix = f"{file.parent.name}/{file.stem}/" if len(every) > 1 else ""
        yield from _File(file, prefix).pictures(*found)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        looked = itertools.islice(itertools.chain(path.glob("*.json"), path.glob("*/*.json")), LOOKED_AT)
        yield from (file for file in sorted(looked) if _is_coco(file))
    elif path.suffix.lower() == ".json" and _is_coco(path):
        yield path


def _is_coco(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return path.is_file() and b"{" in head[:16] and bool(_KEYS.search(head)) and not _ROWS.search(head)


class _File:
    """One annotation file being read."""

    def __init__(self, file: Path, prefix: str) -> None:
        self.file, self.prefix = file, prefix
        self.split = split_named(file.stem) or split_named(file.parent.name)
        tail = re.split(r"[_.]", file.stem)[-1]
        roots = (file.parent, file.parent.parent)
        self.folders = [root / name for root in roots for name in ("", "images", tail, f"images/{tail}")]

    def pictures(self, images: list[Any], annotations: list[Any], categories: list[Any]) -> Iterator[Picture | Fault]:
        names = {
            one["id"]: str(one["name"])
            for one in categories
            if isinstance(one, Mapping) and isinstance(one.get("id"), int | str) and "name" in one
        }
        if not names:
            raise DataError(f"{self.file}: categories holds no id with a name")
        ids = (one.get("id") for one in images if isinstance(one, Mapping))
        known = Counter(image for image in ids if isinstance(image, int | str))
        objects: dict[Any, list[tuple[str, Box | None]]] = {}  # no box where it is that of a crowd, or cannot be used
        for number, one in enumerate(annotations, 1):
            try:
                image, name = _belongs(one, names, known)
            except ValueError as error:
                yield Fault(file=self.file, place=f"annotation {number}", reason=str(error))
                continue
            box = None
            try:
                box = None if one.get("iscrowd") else _box(one)
            except ValueError as error:
                yield Fault(file=self.file, place=f"annotation {number}", reason=str(error))
            objects.setdefault(image, []).append((name, box))
        for number, one in enumerate(images, 1):
            try:
                yield self._picture(one, objects, known)
            except ValueError as error:
                yield Fault(file=self.file, place=f"image {number}", reason=str(error))

    def _picture(self, one: Any, objects: Mapping[Any, list[tuple[str, Box | None]]], known: Counter[Any]) -> Picture:
        if not isinstance(one, Mapping) or not isinstance(one.get("file_name"), str):
            raise ValueError("it has no file_name")
        if not isinstance(one.get("id"), int | str):
            raise ValueError("it has no id that is a number or a text")
        if known[one["id"]] > 1:
            raise ValueError(f"its id {one['id']} is that of another image too, so its objects are not known")
        path = find_image(one["file_name"], self.folders)
        if path is None:
            raise ValueError(f"the image {one['file_name']} is missing; put it beside {self.file} or in images/")
        size = size_of(path, one.get("width"), one.get("height"))
        name = f"{self.prefix}{one['id']}"
        own = objects.get(one["id"], ())
        return Picture(
            id=name,
            image=str(path),
            size=size,
            objects=[(kind, box) for kind, box in own if box],
            split=self.split,
            unasked=frozenset(kind for kind, box in own if not box),
        )


def _belongs(one: Any, names: Mapping[Any, str], known: Counter[Any]) -> tuple[Any, str]:
    """The id of its image, and its class."""
    if not isinstance(one, Mapping):
        raise ValueError("it is no object with named fields")
    category, image = one.get("category_id"), one.get("image_id")
    if not isinstance(category, int | str) or category not in names:
        raise ValueError(f"category_id is {category!r}; no category has this id")
    if not isinstance(image, int | str):
        raise ValueError(f"image_id is {image!r}; it must be the id of an image")
    if image not in known:
        raise ValueError(f"image_id is {image}; no image has this id")
    return image, names[category]


def _box(one: Mapping[str, Any]) -> Box:
    box = one.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or any(type(side) not in (int, float) for side in box):
        raise ValueError(f"bbox is {box!r}"[:80] + "; it must be left, top, width and height in pixels")
    if not (box[2] > 0 and box[3] > 0 and all(map(math.isfinite, box))):
        raise ValueError(f"bbox is {box}; it must be finite, its width and height above 0")
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


EXAMPLE = LayoutExample(
    path="annotations/instances_train.json",
    files={
        "annotations/instances_train.json": {
            "images": [
                {"id": 1, "file_name": "1.png", "width": 120, "height": 80},
                {"id": 2, "file_name": "2.png"},
                {"id": 3, "file_name": "gone.png"},
            ],
            "annotations": [
                {"image_id": 1, "category_id": 7, "bbox": [10, 20, 30, 40]},
                {"image_id": 1, "category_id": 7, "bbox": [60, 20, 30.5, 40]},
                {"image_id": 1, "category_id": 9, "bbox": [0, 0, 120, 10]},
                {"image_id": 1, "category_id": 9, "bbox": [0, 0, 120, 80], "iscrowd": 1},
                {"image_id": 1, "category_id": 9, "bbox": [0, 0, 0, 80]},
                {"image_id": 8, "category_id": 9, "bbox": [0, 0, 1, 1]},
                {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]},
            ],
            "categories": [{"id": 7, "name": "tree"}, {"id": 9, "name": "cloud"}],
        }
    },
    images={"images/1.png": ExampleImage(), "images/2.png": ExampleImage(width=64, height=64)},
    pictures=[
        Picture(
            id="1",
            image="images/1.png",
            size=(120, 80),
            objects=[("tree", (10, 20, 40, 60)), ("tree", (60, 20, 90.5, 60)), ("cloud", (0, 0, 120, 10))],
            split="train",
            unasked=frozenset({"cloud"}),
        ),
        Picture(id="2", image="images/2.png", size=(64, 64), objects=(), split="train"),
    ],
    faults=4,
)
