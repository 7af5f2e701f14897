"""Questions over images with answers, from raw annotation files: a domain trains on them, a benchmark asks.

Both take them from one reader, with one prompt, so that they never disagree. A reader yields a :class:`Question`, or a
Fault for a record that cannot be used. A domain passes faults on; a benchmark refuses the file and lists them.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _vqa
from mini_internvl.data import DataError, Fault, Row
from mini_internvl.records import Item

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""Split -> share of the names that :func:`split_of` gives to it."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with its answer."""

    id: str  # unique in its split
    image: str | bytes  # path or content
    prompt: str  # the text as it is asked
    answer: str  # as it is taught
    reference: Mapping[str, Any] = field(default_factory=dict)  # what a scorer reads; plain JSON data


class Images:
    """Finds images by the names that annotation files give them, in the first folder that has them."""

    def __init__(self, *folders: Path) -> None:
        self.folders = tuple(dict.fromkeys(map(os.fspath, folders)))
        self.begins = [os.path.join(folder, "") for folder in self.folders if os.path.isdir(folder)]
        self.find = functools.lru_cache(maxsize=4096)(self._find)  # many rows in a row ask about one image

    def _find(self, name: str) -> str | None:
        """The path of an image; ``None`` where no folder has it."""
        if not name:
            return None
        return next((path for begin in self.begins if os.path.isfile(path := os.path.join(begin, name))), None)

    def shown(self, value: object) -> str | bytes:
        """The path or the content of an image as a row names or holds it, also as ``datasets`` or a shard writes one.

        ValueError: the image is missing, or there is none.
        """
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        found = self.find(value) if isinstance(value, str) else value
        if not isinstance(found, str | bytes) or not found:
            raise ValueError(self.missing(value) if isinstance(value, str) and value else "image holds no image")
        return found

    def missing(self, name: str) -> str:
        """The reason of a fault."""
        return f"the image {name} is missing; put it below {' or '.join(self.folders[:2])}"


def said(raw: Mapping[str, Any], key: str) -> str:
    """The text of a field, without white space around it; a whole number as text, "" for anything else."""
    value = raw.get(key)
    return value.strip() if isinstance(value, str) else str(value) if type(value) is int else ""


def lacking(raw: Mapping[str, Any], *keys: str) -> str:
    """Which of the fields hold no text, as the reason of a fault; "" where all do."""
    empty = [key for key in keys if not said(raw, key)]
    return f"{' and '.join(empty)} {'hold' if len(empty) > 1 else 'holds'} no text" if empty else ""


def fault(row: Row, reason: str) -> Fault:
    """The fault of a row."""
    return Fault(file=row.file, place=row.place, reason=reason)


def number(row: Row) -> str:
    """The row's number in its file, as an id where the file's own come again."""
    return row.place.rpartition(" ")[2]


def needed(folder: Path, name: str, source: str, *others: str) -> Path:
    """The path of the first of a file's names that is there; DataError where there is none says the source."""
    path = next((path for path in (folder / one for one in (name, *others)) if path.is_file()), None)
    if path is None:
        raise DataError(f"{folder / name} is missing; give the folder that holds it ({source})")
    return path


def split_of(name: str) -> str:
    """The split of a file that no list assigns to one: by a hash of its name, so it never changes."""
    share = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    for split, size in SHARES.items():
        share -= size
        if share < 0:
            return split
    return "test"


def items(
    questions: Iterable[Question | Fault], *, max_new_tokens: int, max_tiles: int = 12, prefix: str = ""
) -> Iterator[Item]:
    """One item a question, its id with ``prefix``; an id that comes again gets a number, such as ``7#2``.

    DataError lists the faults, or says that there is no question.
    """
    found = list(questions)
    faults = [one for one in found if isinstance(one, Fault)]
    if faults:
        raise DataError.of(faults, "mend the records or get the files again from their source")
    asked = [one for one in found if isinstance(one, Question)]
    if not asked:
        raise DataError("the files hold no question of the split; is it the right folder?")
    for name, one in zip(_vqa.unique(f"{prefix}{one.id}" for one in asked), asked, strict=True):
        yield _vqa.ask(name, [one.image], one.prompt, one.reference, max_tiles=max_tiles, max_new_tokens=max_new_tokens)
