"""What people have, as samples: files of rows, and annotated pictures in any layout of ``domains/_annotated``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._classes import SameClassError, read_classes
from mini_internvl.benchmarks._questions import Question
from mini_internvl.data import DataError, Fault
from mini_internvl.data.check import Check
from mini_internvl.data.files import ENDINGS, open_container
from mini_internvl.data.parts import Part, find_parts
from mini_internvl.data.rows import to_sample
from mini_internvl.domains import _annotated
from mini_internvl.domains._annotated import Picture, _crops, _questions, split_named
from mini_internvl.domains._own.splits import SPLITS
from mini_internvl.domains._questions import sample as as_sample
from mini_internvl.inputs.messages import image_parts
from mini_internvl.records import Sample

KINDS = {
    "JsonLines": "JSON lines",
    "JsonList": "a JSON list",
    "Table": "a table",
    "Shard": "a WebDataset shard",
    "Parquet": "Parquet",
}
"""Name of a container's class -> what it is called in print."""
LOOKED_AT = 20  # first rows of a file, of which one must be a sample


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample, what decides its split, and the split that the data name for it, or ""."""

    sample: Sample
    shown: Sequence[Any]  # its pictures; of a crop the picture that it was cut from
    split: str
    source: str = ""  # the file that it came from, or the name that a meta JSON gives it
    repeat: int = 1  # how often training takes it in a pass


@dataclass(frozen=True, kw_only=True)
class Found:
    """Data that were found at a path."""

    format: str  # in words
    records: Callable[[], Iterator[Record | Fault]]  # each call begins at the first
    notes: Sequence[str] = ()  # what is odd, or was left out
    crops: Mapping[str, Any] = field(default_factory=dict)  # ``benchmarks/_joined.FILE``, where pictures were cut
    sources: Mapping[str, str] = field(default_factory=dict)  # name -> how its rows are taken, "" for each once


def find(path: Path, *, seed: int, crop: int, folder: Path) -> Found:
    """What lies at a path; ``crop`` cuts annotated pictures of larger sides, their crops are written below ``folder``.

    DataError says what was looked for where nothing is found.
    """
    layout = _annotated.find_layout(path)
    if layout is not None:
        return _pictures(layout.TITLE, layout.read(path), seed=seed, crop=crop, folder=folder)
    if crop:
        raise DataError(f"{path} holds no boxes (COCO, Pascal VOC, YOLO), and only pictures with boxes can be cut")
    checked = Check()
    parts = _row_parts(path, checked)
    if not parts and path.is_dir() and (classes := _class_folders(path)):
        return classes
    if not parts:
        raise DataError(
            f"nothing in {path} can be read; give a file of rows ({', '.join(ENDINGS)}) or a folder of such files, or "
            "pictures: COCO, Pascal VOC, YOLO, a folder of them for each class"
        )
    kinds = dict.fromkeys(KINDS[type(open_container(part.path)).__name__] for part in parts)
    named = ", ".join(kinds) if len(parts) == 1 else f"{len(parts)} files ({', '.join(kinds)})"
    return Found(
        format=named,
        records=lambda: itertools.chain.from_iterable(map(_rows, parts)),
        notes=checked.warnings(),
        sources={_source(part): part.use() for part in parts},
    )


def _source(part: Part) -> str:
    return part.name or str(part.path)


def _row_parts(path: Path, checked: Check) -> list[Part]:
    """The file itself or those that it names, or the files of a folder, or else those one below, as on the hub."""
    if path.is_file():
        return list(find_parts(path, checked))
    for pattern in ("*", "*/*"):
        found = [file for file in sorted(path.glob(pattern)) if file.suffix.lower() in ENDINGS and file.is_file()]
        parts = [part for file in found for part in find_parts(file, checked)]
        if read := [part for part in parts if any(isinstance(one, Record) for one in _first(part))]:
            return read
    return []


def _first(part: Part) -> Iterator[Record | Fault]:
    try:
        yield from itertools.islice(_rows(part), LOOKED_AT)
    except DataError:
        return


def _rows(part: Part) -> Iterator[Record | Fault]:
    """The rows of a file, or the first ones where a meta JSON wants a share of them; a ``split`` that they name counts
    before the file's name."""
    of_file = split_named(part.path.stem) or split_named(part.path.parent.name)
    container = open_container(part.path)
    wanted = None if part.repeat == 1 else part.rows(sum(1 for _ in container.spans()))
    for _, _, number, data in itertools.islice(container.spans(), wanted):
        row = container.parse(data, number)
        if isinstance(row, Fault):
            yield row
            continue
        sample = to_sample(row, root=part.root, source=part.name, max_tiles=part.max_tiles)
        if isinstance(sample, Fault):
            yield sample
            continue
        named = row.raw.get("split")
        split = split_named(named) if isinstance(named, str) else of_file
        if isinstance(named, str) and named.strip() and not split:
            reason = f'split is "{named}"; it must be {", ".join(SPLITS[:-1])} or {SPLITS[-1]}'
            yield Fault(file=row.file, place=row.place, reason=reason)
            continue
        try:
            shown = [part.source for part in image_parts(sample.messages)]
        except ValueError as error:
            yield Fault(file=row.file, place=row.place, reason=str(error))
            continue
        repeat = max(1, int(part.repeat))
        yield Record(sample=sample, shown=shown, split=split, source=_source(part), repeat=repeat)


def _class_folders(path: Path) -> Found | None:
    """A folder of images for each class, with the splits of its folders or of the images' names."""
    read, notes = list[tuple[str, Question | Fault]](), list[str]()
    for split in SPLITS:
        try:
            read += [(split, one) for one in read_classes(path, split)]
        except SameClassError:
            raise
        except DataError as error:
            if split == "train":
                return None
            notes.append(f"{split} is left out: {error}")
    if not any(isinstance(one, Question) for _, one in read):
        return None

    def records() -> Iterator[Record | Fault]:
        for split, one in read:
            if isinstance(one, Fault):
                yield one
            else:
                yield Record(sample=as_sample([one], path.name), shown=[one.image], split=split)

    classes = {one.answer for _, one in read if isinstance(one, Question)}
    return Found(format=f"a folder of pictures for each of {len(classes)} classes", records=records, notes=notes)


def _pictures(title: str, found: Iterator[Picture | Fault], *, seed: int, crop: int, folder: Path) -> Found:
    """Annotated pictures, all in memory, with their questions."""
    faults, pictures, cut = list[Fault](), list[Picture](), dict[str, str]()
    places: dict[str, dict[str, Any]] = {"pictures": {}, "crops": {}}
    for one in found:
        if isinstance(one, Fault):
            faults.append(one)
            continue
        try:
            for part in _crops.crop(one, crop, folder) if crop else [one]:
                pictures.append(part)
                cut[part.image] = one.image
                if crop:
                    _place(one, part, folder.parent, places)
        except ValueError as error:
            faults.append(Fault(file=Path(one.image), place="file", reason=str(error)))
    classes = sorted({name for picture in pictures for name, _ in picture.objects})
    if pictures and not classes:
        raise DataError(f"no picture has an object ({title}); nothing could be learnt")

    def records() -> Iterator[Record | Fault]:
        yield from faults
        for picture in pictures:
            for sample in _questions.samples(picture, classes, seed=seed):
                yield Record(sample=sample, shown=[cut[picture.image]], split=picture.split)

    objects = sum(len(picture.objects) for picture in pictures)
    parts = f"{len(set(cut.values())):,} pictures cut into {len(pictures):,} of at most {crop} pixels, " if crop else ""
    notes = []
    if crowded := sum(map(_questions.crowded, pictures)):
        notes.append(
            f"boxes of {crowded:,} classes in pictures were not asked for: more than {_questions.MOST_BOXES} of them; "
            f"{'smaller crops' if crop else 'crops of the pictures (--crop 448)'} hold fewer"
        )
    kinds = f"{len(classes)} class{'es' * (len(classes) != 1)}"
    named = f"{title}, {parts}{objects:,} objects of {kinds}"
    return Found(format=named, records=records, notes=notes, crops=places if crop else {})


def _place(whole: Picture, part: Picture, folder: Path, places: dict[str, dict[str, Any]]) -> None:
    """Note where a crop lies in its picture, and the picture's objects."""
    (width, height), picture = whole.size, os.path.abspath(whole.image)
    left, top, right, bottom = part.corners or (0, 0, width, height)
    name = os.path.relpath(part.image, folder).replace(os.sep, "/")
    places["crops"][name] = {"picture": picture, "corners": [left, top, right, bottom]}
    if picture not in places["pictures"]:
        boxes = {
            name: [[max(0, x1), max(0, y1), min(width, x2), min(height, y2)] for x1, y1, x2, y2 in some]
            for name, some in _questions.by_class(whole).items()
        }
        places["pictures"][picture] = {"size": [width, height], "boxes": boxes}
