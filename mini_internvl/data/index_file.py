"""The file of an index: what it tells of each row, mapped into memory, and how it is written."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from mini_internvl.data import Fault, Row
from mini_internvl.data.containers import Container
from mini_internvl.data.parquet import Parquet
from mini_internvl.files import new_file

MAGIC = b"minivl index 1\n\0"  # first and last bytes of an index


class Faults(Sequence[Fault]):
    """The faults of a file in the order of its rows, each read when it is asked for."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index.faulty)

    @overload
    def __getitem__(self, number: int) -> Fault: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Fault]: ...
    def __getitem__(self, number: int | slice) -> Fault | Sequence[Fault]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        return self._index.fault(number)


class Index:
    """The rows of a file by number; sizes are 0 for a faulty row, and for all where nothing measures them."""

    def __init__(self, path: Path, container: Container, *, temporary: bool = False) -> None:
        self.file, self.container = path, container
        if temporary:
            weakref.finalize(self, _remove, path.parent, os.getpid())
        self._open()

    def _open(self) -> None:
        self.meta = _read_meta(self.file)
        rows, faults, text = (self.meta[name] for name in ("rows", "faults", "text"))
        offset = len(MAGIC)

        def mapped(kind: Any, *shape: int) -> np.ndarray:
            nonlocal offset
            if not np.prod(shape):
                return np.empty(shape, kind)
            array = np.memmap(self.file, kind, "r", offset, shape)
            offset += array.nbytes
            return array

        self.places = mapped(np.int64, rows, 3)
        self.faulty = mapped(np.int64, faults)  # numbers of the faulty rows, ascending
        self._ends = mapped(np.int64, faults)
        self.sizes = mapped(np.int32, rows, 3)
        self._text = mapped(np.uint8, text)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "container": self.container}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.places)

    @property
    def tokens(self) -> np.ndarray:
        """(rows,) int32."""
        return self.sizes[:, 0]

    @property
    def supervised(self) -> np.ndarray:
        return self.sizes[:, 1]

    @property
    def tiles(self) -> np.ndarray:
        return self.sizes[:, 2]

    @property
    def faults(self) -> Sequence[Fault]:
        """One for each faulty row, in their order."""
        return Faults(self)

    def fault(self, number: int) -> Fault:
        """The fault of the ``number``-th faulty row."""
        start, end = (int(self._ends[number - 1]) if number else 0), int(self._ends[number])
        place = f"{self.container.place} {self.places[self.faulty[number], 2]}"
        return Fault(file=self.container.path, place=place, reason=self._text[start:end].tobytes().decode("utf-8"))

    def row(self, number: int) -> Row | Fault:
        """One row, read from its file now, or its fault."""
        place = int(np.searchsorted(self.faulty, number))
        if place < len(self.faulty) and self.faulty[place] == number:
            return self.fault(place)
        start, size, line = self.places[number].tolist()
        return self.container.parse(self.container.read(start, size), line)

    @property
    def fingerprint(self) -> str:
        """Of the file's content."""
        return str(self.meta["content"])

    @property
    def measured(self) -> bool:
        """Whether the sizes are known, not only whether rows can be used."""
        return bool(self.meta["measured"]) or len(self.faulty) == len(self)

    @property
    def shortened(self) -> int:
        """Samples that are longer than is allowed and were measured as they will be shortened."""
        return int(self.meta["shortened"])

    @property
    def noted(self) -> Mapping[str, tuple[str, int]]:
        """What is odd but can be trained on: where first (``"line 12"``), and how often."""
        return {what: (place, count) for what, (place, count) in self.meta["noted"].items()}

    def groups(self) -> np.ndarray | None:
        """(rows,) number of the group that a row is read with, in Parquet; ``None`` where rows are read alone."""
        if not isinstance(self.container, Parquet):
            return None
        return np.repeat(np.arange(len(self.container.groups) - 1), np.diff(self.container.groups))


def write_index(
    place: Path, places: np.ndarray, sizes: np.ndarray, faults: Sequence[tuple[int, str]], meta: Mapping[str, Any]
) -> None:
    """Write an index, whole or not at all."""
    reasons = [reason.encode("utf-8", "replace") for _, reason in faults]
    text = b"".join(reasons)
    meta = {**meta, "rows": len(places), "faults": len(faults), "text": len(text)}
    with new_file(place) as draft, draft.open("wb") as file:
        file.write(MAGIC)
        file.write(places.data)  # numpy's tofile() passes over a full disk in silence
        file.write(np.array([row for row, _ in faults], np.int64).data)
        file.write(np.cumsum([len(reason) for reason in reasons], dtype=np.int64).data)
        file.write(sizes.data)
        file.write(text)
        told = json.dumps(meta).encode()
        file.write(told + len(told).to_bytes(8, "little") + MAGIC)


def _read_meta(place: Path) -> dict[str, Any]:
    """What an index says of itself; ValueError where it is not whole."""
    with place.open("rb") as file:
        whole = file.read(len(MAGIC)) == MAGIC
        size = file.seek(0, os.SEEK_END)
        end = size - len(MAGIC) - 8
        file.seek(max(0, end))
        length = int.from_bytes(file.read(8), "little")
        whole = whole and file.read() == MAGIC and 0 < length < end
        if whole:
            file.seek(end - length)
            meta: dict[str, Any] = json.loads(file.read(length))
            rows, faults, text = (meta[name] for name in ("rows", "faults", "text"))
            whole = len(MAGIC) + rows * 36 + faults * 16 + text + length == end
    if not whole:
        raise ValueError(f"{place} is no whole index")
    return meta


def _remove(folder: Path, process: int) -> None:
    """Remove a temporary index, but not from a worker that was forked."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
