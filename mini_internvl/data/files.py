"""Files of rows: read from the beginning, or row by row in any order.

The kind of a file shows in its name and its first bytes: JSON lines, a JSON list, a table (``.tsv``, ``.csv``), a
WebDataset shard (``.tar``) or Parquet. Of an opened file nothing is held but where its rows begin.
"""

from __future__ import annotations

import array
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.containers import BOM, Container, JsonLines, JsonList, Parquet, Shard, Table
from mini_internvl.files import check_file

KINDS: dict[str, type[Container]] = {".parquet": Parquet, ".tar": Shard, ".tsv": Table, ".csv": Table}
"""Kinds that a file's ending tells; of others the first bytes do."""
ENDINGS = (".jsonl", ".json", *KINDS)  # endings of the files that a folder of rows is made of
_PACKED = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\x28\xb5\x2f\xfd": "zstd -d", b"PK\x03\x04": "unzip"}


class RowFile:
    """The rows of a file by number; ``visit`` gets every row or fault, in order, while the file is read at first.

    DataError says that the file is missing, compressed, or damaged as a whole.
    """

    def __init__(self, path: str | Path, visit: Callable[[Row | Fault], None] | None = None) -> None:
        self.path = Path(path)
        self._container = _container(self.path)
        spans = array.array("q")
        for start, size, number, data in self._container.spans():
            spans.extend((start, size, number))
            if visit is not None:
                visit(self._container.parse(data, number))
        self._spans = np.array(spans).reshape(-1, 3)
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        self.fingerprint = f"{self.path.stat().st_size}-{digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self._spans)

    def row(self, index: int) -> Row | Fault:
        """One row, read from the file now."""
        start, size, number = self._spans[index].tolist()
        return self._container.parse(self._container.read(start, size), number)

    def groups(self) -> np.ndarray | None:
        """(rows,) number of the group that a row is read with, in Parquet; ``None`` where rows are read alone."""
        if not isinstance(self._container, Parquet):
            return None
        return np.repeat(np.arange(len(self._container.groups) - 1), np.diff(self._container.groups))


def scan(path: str | Path) -> Iterator[Row | Fault]:
    """The rows of a file from the first to the last; DataError as for :class:`RowFile`."""
    container = _container(Path(path))
    for _, _, number, data in container.spans():
        yield container.parse(data, number)


def _container(path: Path) -> Container:
    check_file(path, error=DataError)
    with path.open("rb") as file:
        start = file.read(4096)
    for magic, command in _PACKED.items():
        if start.startswith(magic):
            raise DataError(f"{path} is compressed; unpack it first ({command})")
    kind = JsonList if start.removeprefix(BOM).lstrip().startswith(b"[") else JsonLines
    return KINDS.get(path.suffix.lower(), kind)(path)
