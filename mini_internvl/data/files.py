"""Files of rows by their kind, and read from the beginning; in any order they are read through ``index``.

The kind of a file shows in its name and its first bytes: JSON lines, a JSON list, a table (``.tsv``, ``.csv``), a
WebDataset shard (``.tar``) or Parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.containers import BOM, Container, JsonLines, JsonList, JsonMembers, Shard
from mini_internvl.data.parquet import Parquet
from mini_internvl.data.table import Table
from mini_internvl.files import check_file

KINDS: dict[str, type[Container]] = {".parquet": Parquet, ".tar": Shard, ".tsv": Table, ".csv": Table}
"""Kinds that a file's ending tells; of others the first bytes do."""
ENDINGS = (".jsonl", ".json", *KINDS)  # endings of the files that a folder of rows is made of
_PACKED = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\x28\xb5\x2f\xfd": "zstd -d", b"PK\x03\x04": "unzip"}


def scan(path: str | Path, key: str = "") -> Iterator[Row | Fault]:
    """The rows of a file from the first to the last; with ``key``, those of the list under it in a JSON object.

    DataError: the file is missing, compressed, or damaged as a whole.
    """
    yield from open_container(Path(path), key).rows()


def scan_members(path: Path) -> Iterator[Row | Fault]:
    """The members of a file that is one JSON object, in order, one in memory: ``id`` is a member's name, ``value`` what
    it holds. DataError: the file is missing, or no object."""
    check_file(path, error=DataError)
    with path.open("rb") as file:
        if not file.read(4096).removeprefix(BOM).lstrip().startswith(b"{"):
            raise DataError(f"{path} holds no JSON object; get the file again from its source")
    yield from JsonMembers(path).rows()


def open_container(path: Path, key: str = "") -> Container:
    """The file by its kind, not read yet; DataError: it is missing, compressed, or damaged as a whole.

    ``key`` names the list of a JSON object that holds the rows.
    """
    check_file(path, error=DataError)
    with path.open("rb") as file:
        start = file.read(4096)
    for magic, command in _PACKED.items():
        if start.startswith(magic):
            raise DataError(f"{path} is compressed; unpack it first ({command})")
    if key:
        return JsonList(path, key)
    kind = JsonList if start.removeprefix(BOM).lstrip().startswith(b"[") else JsonLines
    return KINDS.get(path.suffix.lower(), kind)(path)
