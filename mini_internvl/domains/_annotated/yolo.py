"""YOLO: a text file a picture, with a class number and a box in shares of the sides in each line.

The path is the folder or its ``data.yaml``. The label of ``images/a.jpg`` is ``labels/a.txt``, in folders of splits in
either order (``images/train``, ``train/images``), or ``a.txt`` beside the image. A picture without one shows nothing.
Class names come from ``data.yaml`` (``names``) or ``classes.txt``. A line with more than four numbers is a polygon; its
bounds are the box. Nothing is asked of the class of a line that cannot be used, since its objects are not all known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mini_internvl import files
from mini_internvl.benchmarks._example import ExampleImage
from mini_internvl.data import DataError, Fault
from mini_internvl.domains._annotated import LOOKED_AT, LayoutExample, Picture, images, size_of, split_of, walk
from mini_internvl.inputs.boxes import Box

TITLE = "YOLO"
LISTS = ("classes.txt", "obj.names", "labels/classes.txt")  # files with one class name a line
_LINE = re.compile(rb"\s*\d+(?:\s+[-\d.][-+.\deE]*){4}")
ROUNDING = 0.01  # share of a side by which a box may leave its image; it is cut off


def found(path: Path) -> bool:
    path = _folder(path)
    if not path.is_dir() or not (_yaml_file(path) or _list_file(path)):
        return False
    return any(_is_label(file) for file in walk(path, "txt", most=LOOKED_AT))


def read(path: Path) -> Iterator[Picture | Fault]:
    path = _folder(path)
    names = _names(path)
    for image in images(path):
        label = _label(image, path)
        objects, unasked = list[tuple[str, Box]](), set[str]()
        try:
            width, height = size_of(image)
            lines = files.read_text(label, error=DataError).splitlines() if label else []
        except ValueError as error:
            yield Fault(file=image, place="file", reason=str(error))
            continue
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                objects.append(_object(line.split(), names, width, height))
            except ValueError as error:
                assert label is not None
                yield Fault(file=label, place=f"line {number}", reason=str(error))
                kind = line.split()[0]
                unasked |= {names.get(int(kind), "")} if kind.isdecimal() else {*names.values()}
        shown = image.relative_to(path).with_suffix("").as_posix()
        split = split_of(image, path)
        yield Picture(
            id=shown,
            image=str(image),
            size=(width, height),
            objects=objects,
            split=split,
            unasked=frozenset(unasked - {""}),
        )


def _folder(path: Path) -> Path:
    """The folder of ``data.yaml`` where that is given."""
    return path.parent if path.suffix.lower() in (".yaml", ".yml") and path.is_file() else path


def _is_label(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return bool(_LINE.match(file.read(256)))
    except OSError:
        return False


def _yaml_file(path: Path) -> Path | None:
    for file in sorted([*path.glob("*.yaml"), *path.glob("*.yml")]):
        try:
            if "names:" in files.read_text(file, error=DataError):
                return file
        except DataError:
            continue
    return None


def _list_file(path: Path) -> Path | None:
    return next((path / name for name in LISTS if (path / name).is_file()), None)


def _names(path: Path) -> Mapping[int, str]:
    """Number of a class -> name."""
    file = _yaml_file(path)
    if file is None:
        listed = _list_file(path)
        assert listed is not None
        lines = files.read_text(listed, error=DataError).splitlines()
        return dict(enumerate(line.strip() for line in lines if line.strip()))
    try:
        content: Any = yaml.load(files.read_text(file, error=DataError), yaml.BaseLoader)  # all texts: no is a name
    except yaml.YAMLError as error:
        raise DataError(f"{file} is no YAML ({' '.join(str(error).split())})") from None
    found = content.get("names") if isinstance(content, dict) else None
    pairs = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    names = {int(number): str(name) for number, name in pairs if str(number).isdecimal()}
    if not names:
        raise DataError(f"{file}: names must be a list of class names, or name each number")
    return names


def _label(image: Path, root: Path) -> Path | None:
    parts = list(image.relative_to(root).with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() == "images":
            beside = root.joinpath(*parts[:place], "labels", *parts[place + 1 :])
            return beside if beside.is_file() else None
    beside = image.with_suffix(".txt")
    return beside if beside.is_file() else None


def _object(fields: list[str], names: Mapping[int, str], width: int, height: int) -> tuple[str, Box]:
    try:
        kind, values = int(fields[0]), [float(field) for field in fields[1:]]
    except ValueError:
        raise ValueError("it is no class number with numbers behind it") from None
    if kind not in names:
        raise ValueError(f"the class number is {kind}; the names go to {max(names)}")
    if len(values) in (4, 5):  # the fifth is a detector's confidence
        x, y, w, h = values[:4]
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    elif len(values) >= 6 and len(values) % 2 == 0:
        box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        raise ValueError(f"it holds {len(values)} numbers behind the class; a box has 4, a polygon pairs")
    x1, y1, x2, y2 = (min(1.0, max(0.0, edge)) for edge in box)
    if not (min(box) >= -ROUNDING and max(box) <= 1 + ROUNDING and x1 < x2 and y1 < y2):
        raise ValueError("its box leaves the image or is empty; numbers are shares of the image's sides, 0 to 1")
    return names[kind], (x1 * width, y1 * height, x2 * width, y2 * height)


EXAMPLE = LayoutExample(
    path="",
    files={
        "data.yaml": "train: train/images\nval: valid/images\nnc: 2\nnames: [tree, cloud]\n",
        "train/labels/1.txt": "0 0.25 0.5 0.25 0.5\n1 0 0 1 0 1 0.25 0 0.25\n\n2 0.5 0.5 1 1\n0 0.5 0.5\n0 9 0.5 1 1\n",
        "valid/labels/2.txt": "0 0.5 0.5 1.004 1\n",
    },
    images={
        "train/images/1.png": ExampleImage(),
        "train/images/3.png": ExampleImage(seed=1),
        "valid/images/2.png": ExampleImage(width=64, height=64),
    },
    pictures=[
        Picture(
            id="train/images/1",
            image="train/images/1.png",
            size=(120, 80),
            objects=[("tree", (15, 20, 45, 60)), ("cloud", (0, 0, 120, 20))],
            split="train",
            unasked=frozenset({"tree"}),
        ),
        Picture(id="train/images/3", image="train/images/3.png", size=(120, 80), objects=[], split="train"),
        Picture(
            id="valid/images/2",
            image="valid/images/2.png",
            size=(64, 64),
            objects=[("tree", (0, 0, 64, 64))],
            split="validation",
        ),
    ],
    faults=3,
)
