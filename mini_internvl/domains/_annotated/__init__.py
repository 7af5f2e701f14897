"""Annotated pictures as tools and data sets write them: one file each layout, found by its content.

A layout file has::

    TITLE                the layout's name in print.
    found(path) -> bool  whether a file or folder is of this layout; it looks at little and never fails.
    read(path) -> Iterator[Picture | Fault]
                         its pictures with the classes and boxes of their objects, and a Fault for what cannot be used.
                         DataError where the path as a whole is wrong.
    EXAMPLE              LayoutExample: files in small, and the pictures that they hold.

``_questions.py`` turns pictures into samples, ``_crops.py`` cuts large ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mini_internvl import plugins
from mini_internvl.benchmarks._example import Files
from mini_internvl.data.containers import IMAGE_ENDINGS
from mini_internvl.inputs.boxes import Box
from mini_internvl.inputs.images import image_dimensions

FOLDER = "domains._annotated"
CONTRACT = ("TITLE", "found", "read", "EXAMPLE")
LOOKED_AT = 2000  # files of a folder in which a layout looks for its own
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture with its objects."""

    id: str
    """Unique in its data."""
    image: str
    """Path."""
    size: tuple[int, int]
    """Width and height in pixels."""
    objects: Sequence[tuple[str, Box]]
    """Class and box (x1, y1, x2, y2 in pixels) of each object."""
    split: str = ""
    """The split that the data put it in; "" where they do not say."""
    unasked: Collection[str] = frozenset()
    """Classes of which not every object is known: a crowd, a box that cannot be used. Nothing is asked of them."""
    corners: tuple[int, int, int, int] | None = None
    """Of a crop where it lies in the picture that it was cut from (x1, y1, x2, y2 in pixels)."""

    def __post_init__(self) -> None:
        width, height = self.size
        for name, (x1, y1, x2, y2) in self.objects:
            if not (max(x1, 0) < min(x2, width) and max(y1, 0) < min(y2, height)):
                raise ValueError(f"the box {[x1, y1, x2, y2]} ({name}) is outside the image of {width}x{height} pixels")


@dataclass(frozen=True, kw_only=True)
class LayoutExample(Files):
    """Files in small, and what they hold."""

    path: str
    """What is read, relative to the folder of the files; "" is the folder itself."""
    pictures: Sequence[Picture]
    """Their image paths are relative to the folder."""
    faults: int
    """Records that are faults on purpose."""


def find_layout(path: Path) -> ModuleType | None:
    """The layout of a file or folder; ``None`` where it is of none."""
    layouts = (plugins.find(FOLDER, name) for name in plugins.list_names(FOLDER))
    return next((layout for layout in layouts if layout.found(path)), None)


def split_named(text: str) -> str:
    """The split that a file's or folder's name means, such as ``instances_val2017``; "" for none."""
    words = set(re.split(r"[^a-z]+", text.lower()))
    return next((split for split, names in _SPLITS.items() if words & {*names}), "")


def split_of(path: Path, root: Path) -> str:
    """The split that the folders between ``root`` and a file mean, the deepest first."""
    parts = path.parent.relative_to(root).parts
    return next((split for part in reversed(parts) if (split := split_named(part))), "")


def walk(folder: Path, *endings: str, most: int | None = None) -> Iterator[Path]:
    """Files with an ending (no dot, lower case) below a folder, sorted; of at most so many files that are looked at."""
    looked = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            looked += 1
            if most is not None and looked > most:
                return
            if name.rpartition(".")[2].lower() in endings and not name.startswith("."):
                yield Path(place) / name


def images(folder: Path) -> Iterator[Path]:
    """All image files below a folder."""
    return walk(folder, *IMAGE_ENDINGS)


def find_image(name: str, folders: Sequence[Path]) -> Path | None:
    """The image of a name in the first folder that has it, or its bare name."""
    ways = dict.fromkeys((name, name.replace("\\", "/"), re.split(r"[\\/]", name)[-1]))
    return next((place for folder in folders for way in ways if way and (place := folder / way).is_file()), None)


def size_of(path: Path, width: object = None, height: object = None) -> tuple[int, int]:
    """The size that annotations give where it is one, otherwise that of the file; ImageError where it is no image."""
    if type(width) is int and type(height) is int and width > 0 and height > 0:
        return width, height
    return image_dimensions(str(path))
