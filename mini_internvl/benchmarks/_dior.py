"""DIOR-RSVG as its authors publish it: one XML file an image, and lists of object numbers for the splits.

``Annotations/NAME.xml`` is VOC's form with a ``description`` in each ``object``; images lie in ``JPEGImages``. The
lines of ``train.txt``, ``val.txt`` and ``test.txt`` (beside it or in ``DIOR_RSVG/``) are the running numbers, from 0,
of all objects of all files.
Unusual: the authors' loader numbers the objects in the order in which the file system lists the files; here the files
are sorted by name, which gives the same numbers everywhere. That the lists were made in this order is likely and not
stated. A file that is no XML would shift all numbers behind it, so the whole folder is refused then.
Source: ZhanYang-nwpu/RSVG-pytorch, ``data_loader.py``, ``RSVGD/Annotations/00001.xml`` and ``DIOR_RSVG/*.txt``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mini_internvl import files
from mini_internvl.benchmarks._files import image_folders
from mini_internvl.benchmarks._questions import Images, Question
from mini_internvl.data import DataError, Fault
from mini_internvl.inputs import boxes

LISTS = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
FOLDERS = ("", "DIOR_RSVG")  # of the lists
PREFIX = "Detect "
SIDES = ("xmin", "ymin", "xmax", "ymax")
LARGEST = 1 << 22  # bytes of an annotation file


def read_original(folder: Path, split: str, *, inside: bool) -> Iterator[Question | Fault]:
    """The described objects of a split, by file and number, and a fault for each that cannot be used.

    ``inside`` makes a box that leaves its image a fault; otherwise only its answer is cut off at the edge. Raises
    DataError where lists or annotations are missing, or a file is no XML.
    """
    wanted = _numbers(folder, LISTS[split])
    annotations = folder / "Annotations"
    if not annotations.is_dir():
        raise DataError(f"{annotations} is missing; give the folder that holds Annotations and JPEGImages")
    images = Images(*image_folders(annotations, "DIOR-RSVG/JPEGImages", "JPEGImages"))
    number = 0
    for path in sorted(annotations.glob("*.xml")):
        root = _parse(path)
        for found in root.findall("object"):
            if number in wanted:
                yield _read(path, root, found, number, images, inside=inside)
            number += 1


def _numbers(folder: Path, name: str) -> set[int]:
    path = next((place for below in FOLDERS if (place := folder / below / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder / name} is missing; give the folder that holds it and Annotations (DIOR-RSVG)")
    lines = files.read_text(path, error=DataError).split()
    if wrong := next((line for line in lines if not line.isdecimal()), ""):
        raise DataError(f'{path} holds "{wrong}"; it must hold one object number a line')
    return set(map(int, lines))


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(files.read_bytes(path, limit=LARGEST, error=DataError))
    except ElementTree.ParseError as error:
        raise DataError(
            f"{path} is no XML ({error}); get it again, for the numbers of all later objects depend on it"
        ) from None


def _read(
    path: Path, root: ElementTree.Element, found: ElementTree.Element, number: int, images: Images, *, inside: bool
) -> Question | Fault:
    phrase, name = (found.findtext("description") or "").strip(), (root.findtext("filename") or "").strip()
    try:
        width, height = (int(root.findtext(f"size/{side}") or "") for side in ("width", "height"))
        x1, y1, x2, y2 = box = [float(found.findtext(f"bndbox/{side}") or "") for side in SIDES]
        scaled = boxes.to_thousand(box, width, height)
    except ValueError as error:
        return Fault(file=path, place=f"object {number}", reason=f"size or bndbox cannot be read ({error})")
    wrong = ""
    if not phrase:
        wrong = "description holds no text"
    elif inside and (min(x1, y1) < 0 or x2 > width or y2 > height):
        wrong = f"the box {box} leaves the image of {width}x{height}"
    elif (place := images.find(name)) is None:
        wrong = images.missing(name)
    else:
        return Question(
            id=str(number),
            image=place,
            prompt=f"{PREFIX}<ref>{phrase}</ref>",
            answer=boxes.render(phrase, [scaled]),
            reference={"box": box, "size": [width, height], "question": f"<ref>{phrase}</ref>"},
        )
    return Fault(file=path, place=f"object {number}", reason=wrong)


def annotation(name: str, *objects: tuple[str, tuple[int, int, int, int]], width: int = 120, height: int = 80) -> str:
    """The text of an annotation file, for examples: descriptions with boxes."""
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    found = ""
    for phrase, box in objects:
        sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(SIDES, box, strict=True))
        found += f"<object><name>ship</name><bndbox>{sides}</bndbox><description>{phrase}</description></object>"
    return f"<annotation><filename>{name}</filename>{size}{found}</annotation>"
