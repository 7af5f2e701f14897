"""The files that a source means: one file, those of a folder, or those that InternVL's meta JSON names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mini_internvl.data import DataError
from mini_internvl.data.check import Check
from mini_internvl.data.files import ENDINGS
from mini_internvl.files import read_object

META = frozenset({"root", "annotation", "repeat_time", "max_dynamic_patch", "length", "data_augment"})
"""Keys of an entry of InternVL's meta JSON."""
META_BYTES = 16 << 20  # of the largest one


class Part(NamedTuple):
    """One file of a source, and what :func:`to_sample` is given with its rows (``name`` as their source)."""

    path: Path
    name: str = ""
    root: Path | None = None
    max_tiles: int | None = None
    repeat: float = 1  # how often a pass takes its rows; below 1 it takes the first ones only

    def rows(self, count: int) -> int:
        """Rows of a pass, of the ``count`` that the file has."""
        if not count:
            raise DataError(f"{self.path} holds no samples")
        if self.repeat > 1 and self.repeat != int(self.repeat):
            raise DataError(f"{self.name}: repeat_time is {self.repeat}; above 1 it must be a whole number")
        if int(count * self.repeat) < 1:
            raise DataError(f"{self.name}: repeat_time {self.repeat} leaves none of {count} rows")
        return int(count * self.repeat)

    def use(self) -> str:
        """How its rows are taken where that is not each once, in words; else ""."""
        if self.repeat < 1:
            told = [f"the first {100 * self.repeat:g} % of its rows"]
        else:
            told = [f"each row {self.repeat:g} times"] if self.repeat != 1 else []
        return ", ".join([*told, *([f"at most {self.max_tiles} tiles"] if self.max_tiles else [])])


def find_parts(path: Path, checked: Check) -> Iterator[Part]:
    """The files that a path means."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        if not found:
            raise DataError(f"{path} holds no file of rows ({', '.join(ENDINGS)})")
        yield from (Part(path=file) for file in found)
        return
    meta = _meta(path)
    if meta is None:
        yield Part(path=path)
        return
    for name, entry in meta.items():
        if unread := entry.keys() - META:
            checked.note(f"{', '.join(sorted(unread))} is not read", f"{path}, {name}")
        if entry.get("data_augment"):
            checked.note("data_augment is not read; images are taken as they are", f"{path}, {name}")
        repeat, tiles = entry.get("repeat_time", 1), entry.get("max_dynamic_patch")
        if isinstance(repeat, bool) or not isinstance(repeat, int | float) or not 0 < repeat < 1e6:
            raise DataError(f"{path}, {name}: repeat_time is {repeat!r}; it must be a number above 0")
        if tiles is not None and (type(tiles) is not int or tiles < 1):
            raise DataError(f"{path}, {name}: max_dynamic_patch is {tiles!r}; it must be a whole number from 1")
        annotation = _named(path, name, entry["annotation"])
        root = _named(path, name, entry["root"]) if entry.get("root") else None
        yield Part(path=annotation, root=root, name=name, repeat=repeat, max_tiles=tiles)


def _meta(path: Path) -> Mapping[str, Mapping[str, Any]] | None:
    """InternVL's meta JSON, or ``None`` if the file is something else."""
    if path.suffix.lower() != ".json":
        return None
    try:
        content = read_object(path, limit=META_BYTES, error=DataError)
    except DataError:  # JSON lines, a list, too large, no JSON
        return None
    entries = [isinstance(entry, dict) and isinstance(entry.get("annotation"), str) for entry in content.values()]
    return content if entries and all(entries) else None


def _named(path: Path, name: str, value: object) -> Path:
    """A path of a meta JSON: from its own folder, or as the original reads it, from the working folder."""
    if not isinstance(value, str):
        raise DataError(f"{path}, {name}: {value!r} is no path")
    for found in (path.parent / value, Path(value)):
        if found.exists():
            return found
    raise DataError(f"{path}, {name}: {value} is missing, both in {path.parent} and in the working folder")


def format_key(format: str) -> str:
    """A format's name, and of a file of one's own the content."""
    return format + (hashlib.blake2b(Path(format).read_bytes()).hexdigest() if format.endswith(".py") else "")
