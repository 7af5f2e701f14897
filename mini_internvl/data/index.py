"""An index of a file of rows, made once: where each row stands, what it costs, and its fault, if it has one.

It is one file in the cache folder (``$MINIVL_CACHE/index`` or ``~/.cache/mini-internvl/index``), read as mapped memory,
so that nothing of it is held. Its name tells the path of the rows and all settings that decide sizes; within it stand
the hash of the content, and size, time and inode of the file that had it. While those three are the same the index is
taken as it is; where they changed, the content is hashed again. An index is written beside its place and renamed, so a
half one is never met. What is in the folder can be deleted at any time; one that was not opened for ``KEPT_DAYS`` is
deleted when another is made.

A faulty row keeps its place, so that no other row moves. Faults may lie in what a row names, such as an image that is
missing: whenever an index is opened, its faulty rows are looked at again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mini_internvl import __version__
from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.check import Check, Measure
from mini_internvl.data.containers import Container
from mini_internvl.data.files import open_container
from mini_internvl.data.index_file import Index, write_index
from mini_internvl.data.workers import ordered_map
from mini_internvl.records import Sample

CACHE_VARIABLE = "MINIVL_CACHE"  # environment variable with another cache folder
KEPT_DAYS = 90
BATCH_ROWS, BATCH_BYTES = 1024, 8 << 20  # rows that a worker looks at in one go, at most
Read = Callable[[Row], Sample | Fault]
Progress = Callable[[int], None]  # gets the number of rows that are done
Place = tuple[int, int, int]  # first byte (of Parquet the row's number), bytes, and the number of its line or row

_log = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Found:
    """What was found in some rows that follow each other."""

    sizes: np.ndarray  # (rows, 3) int32
    faults: list[tuple[int, str]]  # row, counted from the first of them, and reason
    noted: dict[str, tuple[str, int]]
    shortened: int
    measured: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """Reads and measures rows."""

    container: Container
    read: Read
    measure: Measure | None
    format: str

    def __call__(self, places: Sequence[Place]) -> Found:
        checked, sizes, faults = Check(self.measure), np.zeros((len(places), 3), np.int32), list[tuple[int, str]]()
        for number, (place, content) in enumerate(zip(places, self.container.contents(places), strict=True)):
            row = self.container.parse(content, place[2])
            found = checked.row(row, self.read, self.format, row.place)
            if isinstance(found, Fault):
                faults.append((number, found.reason))
            else:
                sizes[number] = found.tokens, found.supervised, found.tiles
        return Found(
            sizes=sizes, faults=faults, noted=checked.noted, shortened=checked.shortened, measured=checked.measured
        )


def open_index(
    path: str | Path,
    *,
    read: Read,
    measure: Measure | None = None,
    key: str = "",
    format: str = "",
    workers: int = 0,
    on_progress: Progress | None = None,
) -> Index:
    """The index of a file: the one that is kept, or a new one, for which every row is read, checked and measured once.

    Args:
        read: makes a sample of a row.
        measure: gives the size of a sample; ValueError makes its row a faulty one.
        key: tells all that decides what ``read`` and ``measure`` give. With a measure and no key nothing is kept.
        format: of the rows; "" finds it by their keys.
        workers: processes that look at the rows; with 0 or 1 it is this one. The index does not depend on it.

    DataError: the file is missing, compressed, damaged as a whole, or was changed meanwhile.
    """
    path = Path(path)
    container = open_container(path)
    look = Look(container=container, read=read, measure=measure, format=format)
    build = functools.partial(_build, look, workers, on_progress)
    if measure is None or key:
        place = _place(path, key)
        known = _known(place, container)
        if known is not None:
            with contextlib.suppress(OSError):
                os.utime(place)
            return _looked_again(known, look, workers)
        try:
            build(place)
            _delete_old(place.parent)
            return Index(place, container)
        except OSError as problem:
            _warn_unwritable(place.parent, str(problem))
    return _temporary(container, build)


def _temporary(container: Container, write: Callable[[Path], None]) -> Index:
    """An index that goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="minivl-index-"))
    try:
        write(folder / "rows.index")
        return Index(folder / "rows.index", container, temporary=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _place(path: Path, key: str) -> Path:
    """Where the index of a file is kept."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/mini-internvl").expanduser() / "index"
    name = json.dumps([str(path.resolve()), key, __version__])
    return folder / f"{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}.index"


def _delete_old(folder: Path) -> None:
    """Delete the indexes that were not opened for long, and what is left of some that were not finished."""
    for file in folder.iterdir():
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
                file.unlink()


def _known(place: Path, container: Container) -> Index | None:
    """The index that is kept, if it is of the file as it is now."""
    try:
        index = Index(place, container)
    except (OSError, ValueError, KeyError):  # there is none, or a damaged one
        return None
    facts = _facts(container.path)
    if index.meta["facts"] == facts:
        return index
    if index.fingerprint != _content(container.path, tuple(facts)):
        return None
    with contextlib.suppress(OSError):  # else the content is hashed again next time
        write_index(place, index.places, index.sizes, _faults(index), {**index.meta, "facts": facts})
    return index


def _looked_again(index: Index, look: Look, workers: int) -> Index:
    """The index after another look at its faulty rows, what they named may be there now."""
    if not len(index.faulty):
        return index
    places = [tuple(place) for place in index.places[index.faulty].tolist()]
    batches = [places[start : start + BATCH_ROWS] for start in range(0, len(places), BATCH_ROWS)]
    before, faults, meta = _faults(index), list[tuple[int, str]](), dict(index.meta)
    sizes, noted, start = np.array(index.sizes), dict(index.noted), 0
    for batch, found in zip(batches, ordered_map(look, batches, workers), strict=True):
        rows = index.faulty[start : start + len(batch)]
        sizes[rows] = found.sizes
        faults += [(int(rows[number]), reason) for number, reason in found.faults]
        _add(noted, found.noted)
        meta["shortened"] += found.shortened
        meta["measured"] |= found.measured
        start += len(batch)
    if faults == before:
        return index
    meta["noted"] = noted
    try:
        write_index(index.file, index.places, sizes, faults, meta)
        return Index(index.file, index.container)
    except OSError as problem:
        _warn_unwritable(index.file.parent, str(problem))
    return _temporary(index.container, lambda place: write_index(place, index.places, sizes, faults, meta))


def _build(look: Look, workers: int, on_progress: Progress | None, place: Path) -> None:
    """Look at every row and write the index."""
    path, container = look.container.path, look.container
    facts = _facts(path)
    rows, shortened, measured = 0, 0, False
    faults, noted = list[tuple[int, str]](), dict[str, tuple[str, int]]()
    place.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryFile(dir=place.parent) as places,
        tempfile.TemporaryFile(dir=place.parent) as sizes,
    ):
        for found in ordered_map(look, _written(container, places), workers):
            sizes.write(found.sizes.data)
            faults += [(rows + number, reason) for number, reason in found.faults]
            _add(noted, found.noted)
            shortened += found.shortened
            measured |= found.measured
            rows += len(found.sizes)
            if on_progress:
                on_progress(rows)
        meta = {
            "facts": facts,
            "content": _content(path, tuple(facts)),
            "shortened": shortened,
            "measured": measured,
            "noted": noted,
        }
        if _facts(path) != facts:
            raise DataError(f"{path} was changed while it was read; start again")
        write_index(place, _mapped(places, np.int64, rows), _mapped(sizes, np.int32, rows), faults, meta)


def _written(container: Container, file: BinaryIO) -> Iterator[list[Place]]:
    """The places of all rows, batch by batch, also written to a file."""
    for batch in container.batches(BATCH_ROWS, BATCH_BYTES):
        file.write(np.array(batch, np.int64).data)
        yield batch


def _mapped(file: BinaryIO, kind: Any, rows: int) -> np.ndarray:
    file.flush()
    return np.memmap(file, kind, "r", 0, (rows, 3)) if rows else np.empty((0, 3), kind)


def _add(noted: dict[str, tuple[str, int]], more: Mapping[str, tuple[str, int]]) -> None:
    """Add what other rows have that is odd."""

    def number(place: str) -> int:
        return int(place.rpartition(" ")[2])

    for what, (place, count) in more.items():
        first, before = noted.get(what, (place, 0))
        noted[what] = (min(first, place, key=number), before + count)


def _faults(index: Index) -> list[tuple[int, str]]:
    return [(int(row), fault.reason) for row, fault in zip(index.faulty, index.faults, strict=True)]


def _facts(path: Path) -> list[int]:
    """What changes when a file does."""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ino]


@functools.lru_cache(maxsize=64)
def _content(path: Path, facts: tuple[int, ...]) -> str:
    """Of the file's content, which has not changed since it had these facts."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return f"{facts[0]}-{digest.hexdigest()}"


@functools.cache
def _warn_unwritable(folder: Path, problem: str) -> None:
    _log.warning(
        "%s cannot be written (%s); indexes of data files are made anew each time; set %s to another folder",
        folder,
        problem,
        CACHE_VARIABLE,
    )
