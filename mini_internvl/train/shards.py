"""Values by key in a few large files, written and read by several processes at once without a lock.

A writer appends to a shard of its own, and to its index a record of fixed size for each value: key, place, size and
checksums. A value is there once its record is, so a writer may be killed at any moment. A reader takes in what indexes
have grown by when it misses a key. A damaged value is none; of two with one key the last read counts. Shards can be
deleted, with their indexes, at any time.
"""

from __future__ import annotations

import os
import struct
import time
import uuid
import weakref
import zlib
from pathlib import Path
from typing import Any

RECORD = struct.Struct("<16sQQII")  # key, place in the shard, size, checksums of the value and of the record before it
KEY_BYTES = 16
SHARD_BYTES = 2 << 30  # of values after which a writer begins another shard
LOOK_SECONDS = 1.0  # between two looks at the indexes of others
SHARD, INDEX = ".shard", ".index"
Place = tuple[str, int, int, int]  # of a value: name of its shard, where it begins, size, checksum


class Descriptor:
    """An open file, closed with its last reference."""

    def __init__(self, path: Path, flags: int) -> None:
        self.number = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o644)
        weakref.finalize(self, os.close, self.number)

    def write(self, content: memoryview | bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self.number, view) :]


class Writer:
    """A shard and its index that one process appends to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.place, new = uuid.uuid4().hex, 0, os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.shard = Descriptor(folder / f"{self.name}{SHARD}", new)
        self.index = Descriptor(folder / f"{self.name}{INDEX}", new)

    def append(self, key: bytes, value: memoryview) -> tuple[int, int, int]:
        """Place, size and checksum of the value, which is there when this returns."""
        place, size, check = self.place, len(value), zlib.crc32(value)
        self.shard.write(value)
        self.place += size
        head = RECORD.pack(key, place, size, check, 0)[:-4]
        self.index.write(head + zlib.crc32(head).to_bytes(4, "little"))
        return place, size, check


class Shards:
    """The shards in a folder; picklable, and of use in forked processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clear()

    def _clear(self) -> None:
        self.found: dict[bytes, list[Place]] = {}  # of two of one key the last counts
        self.read: dict[str, int] = {}  # bytes of each index that are taken in
        self.open: dict[str, Descriptor] = {}  # shards that were read
        self.looked = -LOOK_SECONDS
        self.own: Writer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self._clear()

    def get(self, key: bytes) -> bytearray | None:
        """The value of a key of 16 bytes; ``None`` where it is not there, or damaged."""
        if not self.found.get(key):
            self._look()
        places = self.found.get(key, [])
        while places:
            value = self._value(*places[-1])
            if value is not None:
                return value
            places.pop()
        return None

    def _value(self, name: str, place: int, size: int, check: int) -> bytearray | None:
        """A value, if it is whole."""
        try:
            if name not in self.open:
                self.open[name] = Descriptor(self.folder / f"{name}{SHARD}", os.O_RDONLY)
            value = _read(self.open[name].number, place, size)
        except OSError:  # deleted meanwhile
            value = bytearray()
        return value if len(value) == size and zlib.crc32(value) == check else None

    def put(self, key: bytes, value: memoryview) -> None:
        """Append a value of bytes; OSError where it cannot be written."""
        if self.own is None or self.own.place >= SHARD_BYTES:
            self.own = Writer(self.folder)
        writer = self.own
        try:
            self.found.setdefault(key, []).append((writer.name, *writer.append(key, value)))
        except OSError:
            self.own = None
            raise

    def _look(self) -> None:
        """Take in what the indexes have grown by since the last look."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        try:
            entries = [(entry.name, entry.stat().st_size) for entry in os.scandir(self.folder)]
        except OSError:
            return
        for file, size in entries:
            name, ending = os.path.splitext(file)
            if ending == INDEX and size - self.read.get(name, 0) >= RECORD.size:
                self._take(name)

    def _take(self, name: str) -> None:
        begin = self.read.get(name, 0)
        try:
            with (self.folder / f"{name}{INDEX}").open("rb") as file:
                file.seek(begin)
                content = file.read()
        except OSError:
            return
        whole = len(content) // RECORD.size * RECORD.size
        for start in range(0, whole, RECORD.size):
            record = content[start : start + RECORD.size]
            key, place, size, check, own = RECORD.unpack(record)
            if zlib.crc32(record[:-4]) == own:
                self.found.setdefault(key, []).append((name, place, size, check))
        self.read[name] = begin + whole


def _read(descriptor: int, place: int, size: int) -> bytearray:
    """So many bytes from a place, or fewer at the end of the file."""
    value = bytearray(size)
    view, done = memoryview(value), 0
    while done < size:
        if hasattr(os, "preadv"):
            count = os.preadv(descriptor, [view[done:]], place + done)
        else:
            os.lseek(descriptor, place + done, os.SEEK_SET)
            part = os.read(descriptor, size - done)
            view[done : done + len(part)] = part
            count = len(part)
        if not count:
            return value[:done]
        done += count
    return value
