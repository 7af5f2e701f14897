"""Labelled pictures to probe an encoder with: drawn ones, class folders, or a file of rows with images and labels.

A file of rows may be of any kind that training reads (CSV, TSV, JSON lines, Parquet, ...). A row's class is what
stands under ``label``, ``class``, ``category`` or ``answer``, or else the answer to its first question. Rows may name
their split; otherwise a hash of the image's name, or of its bytes, makes the splits, as for class folders.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mini_internvl import synth
from mini_internvl.benchmarks._classes import SPLITS, read_classes
from mini_internvl.benchmarks._questions import split_of
from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.check import Check
from mini_internvl.data.files import scan
from mini_internvl.data.formats import columns
from mini_internvl.data.parts import Part, find_parts
from mini_internvl.data.rows import to_sample
from mini_internvl.inputs.images import load_image
from mini_internvl.inputs.messages import image_parts
from mini_internvl.inputs.questions import asked

LABELS = ("label", "class", "category", "answer")
TRAIN, TEST = 2000, 1000  # most pictures of a task that are fitted, and that are asked
DRAWS = 20  # times that as many pictures are drawn as are wanted, before a kind is given up


class Drawn(NamedTuple):
    """A picture that is drawn when it is needed."""

    kind: str
    seed: int
    number: int
    split: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One labelled picture."""

    id: str  # unique in its split
    label: int  # number of its class
    source: Any  # path, data URL, bytes or Drawn

    def load(self) -> Image.Image:
        """The RGB image; ImageError where a file is missing or damaged."""
        if isinstance(self.source, Drawn):
            return synth.draw_labelled(*self.source)[0]
        return load_image(self.source)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Labelled pictures of one source: those that are fitted, and those that are asked."""

    name: str
    classes: tuple[str, ...]
    train: Sequence[Picture]
    test: Sequence[Picture]

    @property
    def chance(self) -> float:
        """Per cent of the test pictures that are of the most frequent class."""
        counts = np.bincount([picture.label for picture in self.test])
        return 100.0 * float(counts.max()) / len(self.test)


class _Labelled(NamedTuple):
    id: str
    label: str
    source: Any


def read_task(source: str | Path, *, train: int = TRAIN, test: int = TEST, seed: int = 0) -> Task:
    """The labelled pictures of a source, at most ``train`` and ``test`` of them; ``seed`` chooses where there are more.

    Args:
        source: a kind of drawn image that has classes ("digits"), a folder with a folder of images for each class, or a
            file of rows with images and labels.
        train: most pictures that are fitted.
        test: most pictures that are asked.
        seed: of the choice.

    Raises:
        DataError: nothing is found there, a row cannot be used (all are named), or a class is missing from training.
    """
    if str(source) in synth.KINDS:
        found = {split: _drawn(str(source), seed, count, split) for split, count in (("train", train), ("test", test))}
        name = str(source)
    else:
        path = Path(source)
        if not path.exists():
            known = ", ".join(synth.labelled_kinds())
            raise DataError(f"{source} is neither a file or folder nor a kind of drawn image with classes ({known})")
        every = _class_folders(path) if path.is_dir() else _rows(path)
        found = {split: _some(every[split], count, seed) for split, count in (("train", train), ("test", test))}
        name = path.stem if path.is_file() else path.resolve().name
    classes = tuple(sorted({one.label for one in found["train"]}))
    return _task(name, classes, found["train"], found["test"])


def _task(name: str, classes: tuple[str, ...], train: Sequence[_Labelled], test: Sequence[_Labelled]) -> Task:
    if len(classes) < 2 or not test:
        raise DataError(
            f"{name}: {len(train)} training pictures of {len(classes)} classes and {len(test)} test pictures; a probe "
            "needs two classes to train on and some pictures to ask"
        )
    number = {label: place for place, label in enumerate(classes)}
    if unknown := sorted({one.label for one in test} - number.keys()):
        raise DataError(f'{name}: test pictures are of the class "{unknown[0]}", which no training picture has')
    both = ([Picture(id=one.id, label=number[one.label], source=one.source) for one in side] for side in (train, test))
    return Task(name=name, classes=classes, train=next(both), test=next(both))


def _some(found: Sequence[_Labelled], count: int, seed: int) -> list[_Labelled]:
    """At most so many, in their order."""
    if len(found) <= count:
        return list(found)
    chosen = np.random.default_rng(seed).permutation(len(found))[:count]
    return [found[place] for place in sorted(chosen)]


def _drawn(kind: str, seed: int, count: int, split: str) -> list[_Labelled]:
    found = []
    for index in range(DRAWS * count):
        label = synth.draw_labelled(kind, seed, index, split)[1]
        if label is not None:
            found.append(_Labelled(f"{kind}/{seed}/{index}", label, Drawn(kind, seed, index, split)))
        if len(found) == count:
            break
    return found


def _class_folders(folder: Path) -> dict[str, list[_Labelled]]:
    faults, found = list[Fault](), {}
    for split in ("train", "test"):
        read = list(read_classes(folder, split))
        faults += [one for one in read if isinstance(one, Fault)]
        found[split] = [_Labelled(one.id, one.answer, one.image) for one in read if not isinstance(one, Fault)]
    if faults:
        raise DataError.of(faults, "mend or remove them")
    return found


def _rows(path: Path) -> dict[str, list[_Labelled]]:
    """The rows of a file by their split."""
    faults, found = list[Fault](), dict[str, list[_Labelled]]({split: [] for split in SPLITS})
    read = list[tuple[str, _Labelled]]()
    for one in _read(find_parts(path, Check())):
        if isinstance(one, Fault):
            faults.append(one)
        else:
            read.append(one)
    if faults:
        raise DataError.of(faults, "mend the rows or take them out")
    named = len({split for split, _ in read if split}) > 1
    for split, labelled in read:
        found[split or "train" if named else split_of(_name(labelled.source))].append(labelled)
    return found


def _read(parts: Iterable[Part]) -> Iterator[tuple[str, _Labelled] | Fault]:
    """(split that a row names or "", its picture)."""
    number = 0
    for part in parts:
        for row in scan(part.path):
            number += 1
            yield row if isinstance(row, Fault) else _row(row, part, number)


def _row(row: Row, part: Part, number: int) -> tuple[str, _Labelled] | Fault:
    raw = {str(key).lower(): value for key, value in row.raw.items()}
    label = next((str(raw[name]) for name in LABELS if isinstance(raw.get(name), str | int) and raw[name] != ""), "")
    image = next((raw[name] for name in columns.IMAGE if raw.get(name)), None)
    plain = replace(row, raw={"image": image, "question": "?", "answer": label}) if label and image else row
    sample = to_sample(plain, root=part.root, source=part.name)
    if isinstance(sample, Fault):
        return sample
    try:
        shown = image_parts(sample.messages)
        label = label or next(answer for _, answer in asked(sample)).strip()
    except (ValueError, StopIteration) as error:
        return Fault(file=row.file, place=row.place, reason=str(error) or "no label and no answer")
    if len(shown) != 1 or not label:
        reason = f"{len(shown)} images and the label {label!r}; it must be one image with a label"
        return Fault(file=row.file, place=row.place, reason=reason)
    split = raw.get("split")
    lower = split.strip().lower() if isinstance(split, str) else ""
    named = next((one for one, names in SPLITS.items() if lower in names), "")
    if lower and not named:
        reason = f'split is "{split}"; it must be {", ".join(SPLITS)}'
        return Fault(file=row.file, place=row.place, reason=reason)
    return named, _Labelled(f"{number}", label, shown[0].source)


def _name(source: Any) -> str:
    """What tells an image from others in the making of splits, the same wherever the data lie."""
    if isinstance(source, str | os.PathLike) and not os.fsdecode(source).startswith("data:"):
        return Path(source).name
    content = source.encode() if isinstance(source, str) else source
    return hashlib.sha256(content).hexdigest()
