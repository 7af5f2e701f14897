"""Pascal VOC: one XML file a picture, with ``object``, ``name`` and ``bndbox`` in pixels, as LabelImg and DIOR have it.

The XML files lie in ``Annotations/``, beside the images, or in folders of splits; images in ``JPEGImages/``,
``images/`` or beside them. ``ImageSets/Main/train.txt``, ``val.txt`` and ``test.txt`` tell the splits where they are
there, otherwise the folders' names do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mini_internvl import files
from mini_internvl.benchmarks._dior import LARGEST, SIDES
from mini_internvl.benchmarks._example import ExampleImage
from mini_internvl.data import DataError, Fault
from mini_internvl.data.containers import IMAGE_ENDINGS
from mini_internvl.domains._annotated import (
    LOOKED_AT,
    LayoutExample,
    Picture,
    find_image,
    size_of,
    split_named,
    split_of,
    walk,
)
from mini_internvl.inputs.boxes import Box

TITLE = "Pascal VOC"
LISTS = ("ImageSets/Main", "ImageSets", "Main")


def found(path: Path) -> bool:
    return path.is_dir() and any(_is_voc(file) for file in walk(path, "xml", most=LOOKED_AT))


def read(path: Path) -> Iterator[Picture | Fault]:
    lists = _lists(path)
    for file in walk(path, "xml"):
        try:
            yield _picture(file, path, lists)
        except ElementTree.ParseError as error:
            yield Fault(file=file, place="file", reason=f"it is no XML ({error})")
        except ValueError as error:
            yield Fault(file=file, place="file", reason=str(error))


def _is_voc(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"<annotation" in file.read(1024)
    except OSError:
        return False


def _lists(path: Path) -> dict[str, str]:
    """Name of a picture -> split, from the lists."""
    folder = next((path / place for place in LISTS if any((path / place).glob("*.txt"))), None)
    known: dict[str, str] = {}
    for file in sorted(folder.glob("*.txt")) if folder else ():
        if file.stem in ("train", "val", "test"):
            for line in files.read_text(file, error=DataError).splitlines():
                if line.strip():
                    known[line.split()[0]] = split_named(file.stem)
    return known


def _picture(file: Path, root: Path, lists: dict[str, str]) -> Picture:
    tree = ElementTree.fromstring(files.read_bytes(file, limit=LARGEST, error=DataError))
    name = (tree.findtext("filename") or "").strip()
    folders = [
        file.parent,
        *(up / below for up in (file.parent.parent, root) for below in ("JPEGImages", "images", "")),
    ]
    names = [name, *(f"{file.stem}.{ending}" for ending in IMAGE_ENDINGS)]
    image = next((found for one in names if (found := find_image(one, folders))), None)
    if image is None:
        raise ValueError(f"the image {name or file.stem} is missing; put it beside the file or in JPEGImages/")
    given = [tree.findtext(f"size/{side}") or "" for side in ("width", "height")]
    size = size_of(image, *(int(side) if side.strip().isdecimal() else None for side in given))
    objects = [_object(one, number) for number, one in enumerate(tree.iter("object"), 1)]
    shown = file.relative_to(root).with_suffix("").as_posix().removeprefix("Annotations/")
    split = lists.get(file.stem, "") or split_of(file, root)
    return Picture(id=shown, image=str(image), size=size, objects=objects, split=split)


def _object(one: ElementTree.Element, number: int) -> tuple[str, Box]:
    name = (one.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"object {number} has no name")
    try:
        x1, y1, x2, y2 = (float(one.findtext(f"bndbox/{side}") or "") for side in SIDES)
    except ValueError:
        raise ValueError(f"object {number} ({name}) has no bndbox with the numbers {', '.join(SIDES)}") from None
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"object {number} ({name}) has the box {[x1, y1, x2, y2]}; its corners are swapped or equal")
    return name, (x1, y1, x2, y2)


def _xml(name: str, *objects: str, size: str = "") -> str:
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


def _tree(*box: float) -> str:
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(SIDES, box, strict=True))
    return f"<object><name>tree</name><bndbox>{sides}</bndbox></object>"


EXAMPLE = LayoutExample(
    path="",
    files={
        "Annotations/1.xml": _xml("1.png", _tree(10, 20, 40, 60), _tree(60, 20, 90, 60)),
        "Annotations/2.xml": _xml("other name.png", size="<size><width>64</width><height>64</height></size>"),
        "Annotations/3.xml": _xml("1.png", _tree(40, 20, 10, 60)),
        "Annotations/4.xml": "<annotation>",
        "Annotations/5.xml": _xml("gone.png"),
        "ImageSets/Main/train.txt": "1\n",
        "ImageSets/Main/val.txt": "2  -1\n",
    },
    images={"JPEGImages/1.png": ExampleImage(), "JPEGImages/2.png": ExampleImage(width=64, height=64)},
    pictures=[
        Picture(
            id="1",
            image="JPEGImages/1.png",
            size=(120, 80),
            objects=[("tree", (10, 20, 40, 60)), ("tree", (60, 20, 90, 60))],
            split="train",
        ),
        Picture(id="2", image="JPEGImages/2.png", size=(64, 64), objects=[], split="validation"),
    ],
    faults=3,
)
