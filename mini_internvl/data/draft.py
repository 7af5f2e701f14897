"""Files that are written piece by piece and go on where a kill ended them.

While ``NAME`` grows, ``.NAME.draft`` beside it holds its pieces and ``.NAME.journal`` a line of JSON for each of them,
with its size and checksum. A piece counts when its line is whole and the draft holds its bytes: neither half a row nor,
after a power failure, a hole can stay. A finished file takes its name at once. Unusual: the shards of a source share
one journal, and each has its own name as soon as it is full.
"""

from __future__ import annotations

import glob
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from mini_internvl import locks
from mini_internvl.data import DataError, Fault
from mini_internvl.data.writers import Writer
from mini_internvl.files import clear_drafts, flush_file, new_file, write_text


class Piece(NamedTuple):
    """What a batch of records became."""

    data: bytes
    rows: int
    read: int  # records that were read
    faults: Sequence[Fault]


@dataclass(frozen=True, kw_only=True)
class Shards:
    """When a file is full and the next one begins; 0 is never, and both at 0 give one file under its own name."""

    rows: int = 0  # records read, so a shard without those that cannot be used has fewer rows
    size: int = 0  # bytes of its pieces, the last of which may go over it

    def path(self, out: Path, number: int) -> Path:
        """The shard's file."""
        return out.with_name(f"{out.stem}-{number:06d}{out.suffix}") if self.rows or self.size else out

    def written(self, out: Path) -> list[Path]:
        """The files of this name that are there."""
        if not (self.rows or self.size):
            return [out] if out.exists() else []
        return sorted(out.parent.glob(f"{glob.escape(out.stem)}-{'[0-9]' * 6}{glob.escape(out.suffix)}"))


@dataclass(kw_only=True)
class State:
    """How far a file is."""

    pieces: int = 0
    rows: int = 0
    read: int = 0
    faults: list[Fault] = field(default_factory=list)  # the first ones
    faulty: int = 0  # all of them
    shards: list[Path] = field(default_factory=list)  # finished files
    in_shard: int = 0  # records read for the one that grows
    size: int = 0  # bytes of its draft
    complete: bool = False

    def add(self, entry: Mapping[str, Any], out: Path) -> None:
        """Count a piece, or the end of a shard, by its line."""
        if "complete" in entry:
            self.complete = True
        elif "closed" in entry:
            self.shards += [out.parent / entry["closed"]] if entry["closed"] else []
            self.in_shard = self.size = 0
        else:
            self.pieces += 1
            self.rows += entry["rows"]
            self.read += entry["read"]
            self.in_shard += entry["read"]
            self.size += entry["size"]
            self.faulty += entry["faulty"]
            self.faults += [Fault(**{**told, "file": Path(told["file"])}) for told in entry["faults"]]


class Draft:
    """The growing file of a writer, in a context: what was begun under the same key goes on, anything else is cleared.

    ``key`` tells all that decides the bytes, by name. At most ``kept`` faults are kept, the others counted. Files that
    are there without a journal are replaced where ``replace`` says so. ``note`` is a line about what was begun before.
    DataError: another process writes the file, or it is there.
    """

    def __init__(
        self, writer: Writer, key: Mapping[str, str], shards: Shards, *, kept: int = sys.maxsize, replace: bool = False
    ) -> None:
        self.writer, self.key, self.shards, self.kept, self.replace = writer, dict(key), shards, kept, replace
        self.out, self.state, self.note = writer.out, State(), ""
        self._draft, self._journal = _draft(self.out), _journal(self.out)
        self._lock = self.out.with_name(f".{self.out.name}.lock")
        self._lines: TextIO | None = None  # the journal
        self._file: BinaryIO | None = None  # the draft, once there is a row for it
        self._assembly = ExitStack()
        self._assemble: Callable[[bytes], Any] | None = None

    def __enter__(self) -> Draft:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._held = locks.lock(self._lock, remedy="write another file", error=DataError)
        try:
            self._resume(self._known())
            self._lines = self._journal.open("a", encoding="utf-8")
            self._close_full()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(self, *raised: Any) -> None:
        self._let_go(given_up=not self.state.pieces)

    def _let_go(self, *, given_up: bool = False) -> None:
        """Close all files and unlock, each even where another cannot be closed because the disk is full."""
        with ExitStack() as closing:
            closing.callback(locks.unlock, self._held)
            closing.callback(self._lock.unlink, missing_ok=True)
            if given_up:
                closing.callback(forget, self.out)
            for file in (self._file, self._lines):
                if file is not None:
                    closing.callback(file.close)
            stopped = DataError("the file is not finished")
            closing.callback(self._assembly.__exit__, DataError, stopped, None)

    def add(self, piece: Piece) -> None:
        """Write a piece; the shard is finished where that fills it."""
        entry = {
            "size": len(piece.data),
            "sum": zlib.crc32(piece.data),
            "rows": piece.rows,
            "read": piece.read,
            "faulty": len(piece.faults),
            "faults": [_told(fault) for fault in piece.faults[: self.kept - len(self.state.faults)]],
        }
        if piece.data:
            file = self._file or self._begin([])
            file.write(piece.data)
            file.flush()
            if self._assemble is not None:
                self._assemble(piece.data)
        self._tell(entry)
        self._close_full()

    def _close_full(self) -> None:
        full, large = self.shards.rows, self.shards.size
        if (full and self.state.in_shard >= full) or (large and self.state.size >= large):
            self.close()

    def close(self) -> None:
        """Finish the shard that grows, if one does."""
        if self.state.in_shard:
            self._tell({"closed": self._finish() if self._file is not None else ""})

    def complete(self) -> None:
        """All pieces were added."""
        self.close()
        self._tell({"complete": True})

    def _tell(self, entry: Mapping[str, Any]) -> None:
        assert self._lines is not None
        self._lines.write(json.dumps(entry) + "\n")
        self._lines.flush()
        self.state.add(entry, self.out)

    def _begin(self, sizes: Sequence[int]) -> BinaryIO:
        """Open the draft behind pieces of these sizes."""
        self._file = file = self._draft.open("ab" if sizes else "wb")
        file.truncate(sum(sizes))
        if self.writer.assembles:
            path = self.shards.path(self.out, len(self.state.shards))
            clear_drafts(path)
            self._assembly = ExitStack()
            self._assemble = self._assembly.enter_context(
                self.writer.assembled(self._assembly.enter_context(new_file(path)))
            )
            with self._draft.open("rb") as pieces:
                for size in sizes:
                    self._assemble(pieces.read(size))
        return file

    def _finish(self) -> str:
        """Give the shard its name, when the disk has the lines of its pieces."""
        assert self._file is not None
        assert self._lines is not None
        os.fsync(self._lines.fileno())
        path = self.shards.path(self.out, len(self.state.shards))
        if self._assemble is None:
            self._file.write(self.writer.tail)
            self._file.close()
            flush_file(self._draft)
            os.replace(self._draft, path)
        else:
            self._file.close()
            self._assembly.close()
            self._draft.unlink()
        self._file = None
        return path.name

    def _known(self) -> list[dict[str, Any]]:
        """The journal's lines of what was begun under the same key."""
        key, *entries = [*_whole_lines(self._journal)] or [{}]
        if not (begun := key.get("key")):
            return []
        if begun == self.key:
            return entries
        changed = [name for name in begun | self.key if self.key.get(name) != begun.get(name)]
        self.note = f"{self.out} was begun with other {' and '.join(changed)}; it starts over"
        self._remove(entries)
        return []

    def _resume(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Take the pieces that are whole; journal and draft end with them."""
        kept, sizes = list[Mapping[str, Any]](), list[int]()
        for shard in _by_shard(entries):
            path = self.shards.path(self.out, len(self.state.shards))
            sizes = []
            if "complete" in shard[0]:
                pass
            elif "closed" in shard[-1]:
                if shard[-1]["closed"] and not path.exists():
                    self.note = f"{path} is missing; it and what comes behind it are written again"
                    self._remove(entries[len(kept) :])
                    break
            elif self._is_finished(path, shard):
                shard.append({"closed": path.name})
            else:
                shard = list(_whole_pieces(self._draft, shard))
                sizes = [entry["size"] for entry in shard]
            for entry in shard:
                self.state.add(entry, self.out)
            kept += shard
        if self.state.pieces:
            self.note = self.note or f"{self.out} goes on after {self.state.read:,} records"
        else:
            self._take_place()
        lines = [{"key": self.key}, *kept]
        write_text(self._journal, "".join(json.dumps(line) + "\n" for line in lines))
        if sum(sizes):
            self._begin(sizes)
        else:
            self._draft.unlink(missing_ok=True)

    def _remove(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Delete the finished shards that lines of the journal name."""
        for name in filter(None, (entry.get("closed") for entry in entries)):
            (self.out.parent / Path(name).name).unlink(missing_ok=True)

    def _is_finished(self, path: Path, shard: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a kill came between a shard's name and its line; DataError where it is another file."""
        if not path.exists():
            return False
        rows, size = (sum(entry[what] for entry in shard) for what in ("rows", "size"))
        if not self.writer.is_whole(path, rows, size):
            raise DataError(f"{path} exists already; give a new file")
        return True

    def _take_place(self) -> None:
        """Clear the way for a file that begins; DataError where one is there."""
        for path in self.shards.written(self.out):
            if not self.replace:
                raise DataError(f"{path} exists already; give a new file")
            path.unlink()


def forget(out: Path) -> None:
    """Delete what a file leaves for the next call: it is finished, or given up."""
    _draft(out).unlink(missing_ok=True)
    _journal(out).unlink(missing_ok=True)


def begun(out: Path) -> dict[str, str]:
    """The key of a file that was begun; empty where none was."""
    return next(_whole_lines(_journal(out)), {}).get("key", {})


def faulty(out: Path) -> int:
    """Records of a file that was begun that could not be used."""
    return sum(entry.get("faulty", 0) for entry in _whole_lines(_journal(out)))


def _draft(out: Path) -> Path:
    return out.with_name(f".{out.name}.draft")


def _journal(out: Path) -> Path:
    return out.with_name(f".{out.name}.journal")


def _told(fault: Fault) -> dict[str, str]:
    return {"file": str(fault.file), "place": fault.place, "reason": fault.reason}


def _whole_lines(journal: Path) -> Iterator[dict[str, Any]]:
    """The lines up to the first that is cut off."""
    if not journal.exists():
        return
    with journal.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(entry, dict):
                return
            yield entry


def _by_shard(entries: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    shard = list[Mapping[str, Any]]()
    for entry in entries:
        shard.append(entry)
        if "closed" in entry:
            yield shard
            shard = []
    if shard:
        yield shard


def _whole_pieces(draft: Path, entries: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The pieces up to the first that the draft does not hold."""
    with draft.open("rb") if draft.exists() else io.BytesIO() as file:
        for entry in entries:
            data = file.read(entry["size"])
            if len(data) < entry["size"] or zlib.crc32(data) != entry["sum"]:
                return
            yield entry
