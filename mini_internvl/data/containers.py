"""Kinds of files that hold rows: JSON lines, a JSON list, a table, a WebDataset shard, Parquet.

Each gives the spans of its rows in one pass, in constant memory, and parses the bytes of one span. What is wrong with a
row becomes a Fault; only a file that cannot be read at all raises DataError.
"""

from __future__ import annotations

import abc
import csv
import io
import json
import re
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mini_internvl.data import DataError, Fault, Row

MAX_ROW_BYTES = 64 << 20
"""Bytes of the largest row that is read: images inside a row count."""
BOM = b"\xef\xbb\xbf"
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
Update = Callable[[bytes], None]
_CHUNK = 1 << 20
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|(\\?)\Z)|([\[\]{},])', re.DOTALL)
"""A string, whole or (group 1: its last backslash) cut off by the end of the bytes; a bracket or comma (group 2)."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Span(NamedTuple):
    """Where a row stands."""

    start: int
    """Its first byte; the row's number in Parquet."""
    size: int
    """Its bytes; more than ``MAX_ROW_BYTES`` is a fault."""
    number: int
    """Its line in JSON lines, else its number, from 1."""
    data: Any
    """Its content, as :meth:`Container.read` gives it."""


class Container(abc.ABC):
    """One file of rows."""

    place = "line"

    def __init__(self, path: Path) -> None:
        self.path = path

    @abc.abstractmethod
    def spans(self, update: Update) -> Iterator[Span]:
        """Every row, in order; ``update`` is called with every byte of the file, in order."""

    def read(self, start: int, size: int) -> Any:
        """The bytes of one span."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def parse(self, data: Any, number: int) -> Row | Fault:
        """The row that a span's bytes hold."""
        if data is None:
            return self.fault(number, f"the row has more than {MAX_ROW_BYTES:,} bytes; keep images in files beside it")
        try:
            raw = decode(data)
        except ValueError as error:
            return self.fault(number, str(error))
        return self.row(number, raw)

    def row(self, number: int, raw: dict[str, Any]) -> Row:
        """A row at its place."""
        named = raw.get("id")
        name = str(number) if named is None else str(named)
        return Row(file=self.path, place=f"{self.place} {number}", raw=raw, id=name)

    def fault(self, number: int, reason: str) -> Fault:
        """A fault at its place."""
        return Fault(file=self.path, place=f"{self.place} {number}", reason=reason)


def decode(data: bytes) -> dict[str, Any]:
    """The object of a JSON text.

    Raises:
        ValueError: no JSON, no UTF-8, half a character, nested without end, or no object; in plain words.
    """
    try:
        raw = json.loads(data.decode("utf-8"))
        if _SURROGATE.search(data):
            json.dumps(raw, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 ({error.reason} at byte {error.start + 1}); save it as UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("a text holds half a character (a lone surrogate such as \\ud83d); take it out") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not valid JSON (lists or objects nested too deep)") from None
    except ValueError:  # what int() says of its limit
        raise ValueError("not valid JSON (a number has too many digits)") from None
    if not isinstance(raw, dict):
        raise ValueError("not an object with named fields")
    return raw


class JsonLines(Container):
    """One JSON object a line; blank lines are passed over."""

    def spans(self, update: Update) -> Iterator[Span]:
        with self.path.open("rb") as file:
            start = 0
            for number, (data, size) in enumerate(_lines(file, update), 1):
                skipped = len(BOM) if start == 0 and data is not None and data.startswith(BOM) else 0
                if data is None or not data.isspace():
                    yield Span(start + skipped, size - skipped, number, data[skipped:] if data else None)
                start += size


def _lines(file: BinaryIO, update: Update) -> Iterator[tuple[bytes | None, int]]:
    """(line, bytes) of each line; ``None`` for one that is too long."""
    while line := file.readline(MAX_ROW_BYTES + 1):
        update(line)
        size = len(line)
        if size <= MAX_ROW_BYTES:
            yield line, size
            continue
        while not line.endswith(b"\n") and (line := file.readline(_CHUNK)):
            update(line)
            size += len(line)
        yield None, size


class JsonList(Container):
    """One JSON list of objects, over as many lines as it likes (LLaVA's own form)."""

    place = "row"

    def spans(self, update: Update) -> Iterator[Span]:
        depth = start = number = 0
        with self.path.open("rb") as file:
            for position, kind in _brackets(file, update):
                if kind in b"[{":
                    depth += 1
                    start = position + 1 if depth == 1 else start
                elif kind in b"]}":
                    depth -= 1
                if depth == 0 or (depth == 1 and kind == b","):
                    size = position - start
                    data = self.read(start, size) if size <= MAX_ROW_BYTES else None
                    if number or kind == b"," or data is None or data.strip():
                        number += 1
                        yield Span(start, size, number, data)
                    start = position + 1
        if depth:
            yield Span(start, 0, number + 1, b"")

    def parse(self, data: Any, number: int) -> Row | Fault:
        if data == b"":
            return self.fault(number, "not valid JSON (nothing between two commas, or the list is cut off)")
        return super().parse(data, number)


def _brackets(file: BinaryIO, update: Update) -> Iterator[tuple[int, bytes]]:
    """(position, byte) of every bracket and comma outside of strings."""
    done, carry = 0, b""
    while chunk := file.read(_CHUNK):
        update(chunk)
        buffer, base = carry + chunk, done - len(carry)
        done, carry = done + len(chunk), b""
        for token in _TOKEN.finditer(buffer):
            if token.lastindex == 2:
                yield base + token.start(), token[2]
            elif token.lastindex == 1:  # a string that goes on in the next chunk
                carry = b'"' + token[1]


class Table(Container):
    """A header and one row a line, cells between tabs or commas; every cell is a text."""

    place = "row"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        self.delimiter = "," if path.suffix.lower() == ".csv" else "\t"
        self.header: list[str] = []

    def spans(self, update: Update) -> Iterator[Span]:
        with self.path.open("rb") as file:
            taken: list[bytes] = []
            reader = csv.reader(self._texts(file, taken, update), delimiter=self.delimiter)
            start = 0
            try:
                for number, cells in enumerate(reader):
                    data = b"".join(taken)
                    taken.clear()
                    if number == 0:
                        self.header = cells
                    elif cells:
                        yield Span(start, len(data), number, data if len(data) <= MAX_ROW_BYTES else None)
                    start += len(data)
            except csv.Error as error:
                raise DataError(f"{self.path} is no table of rows ({error}); fetch it again") from None

    def _texts(self, file: BinaryIO, taken: list[bytes], update: Update) -> Iterator[str]:
        for number, line in enumerate(file):
            update(line)
            taken.append(line)
            yield line.decode("utf-8-sig" if number == 0 else "utf-8", "surrogateescape")

    def parse(self, data: Any, number: int) -> Row | Fault:
        if data is None:
            return super().parse(data, number)
        try:
            (cells,) = csv.reader([data.decode("utf-8")], delimiter=self.delimiter)
        except UnicodeDecodeError as error:
            return self.fault(number, f"not valid UTF-8 ({error.reason}); save it as UTF-8")
        except (ValueError, csv.Error) as error:
            return self.fault(number, f"not one row of a table ({error})")
        if len(cells) != len(self.header):
            return self.fault(number, f"{len(cells)} cells, the header has {len(self.header)}")
        return self.row(number, dict(zip(self.header, cells, strict=True)))


class Shard(Container):
    """A WebDataset tar: members with one name up to the first dot are a row, ``NAME.json`` and its images."""

    place = "row"

    def spans(self, update: Update) -> Iterator[Span]:
        try:
            with tarfile.open(self.path, "r:") as tar:
                number, key, start, end = 0, "", 0, 0
                for member in tar:
                    vars(tar)["members"].clear()  # it would keep every member
                    name = _key(member.name) if member.isfile() else key
                    if name != key and key:
                        number += 1
                        yield self._span(start, end, number)
                    if name != key:
                        key, start = name, member.offset
                    end = member.offset_data + (member.size + 511) // 512 * 512
                if key:
                    yield self._span(start, end, number + 1)
        except tarfile.TarError as error:
            raise DataError(f"{self.path} is no tar file, or it is cut off ({error}); fetch it again") from None
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                update(chunk)

    def _span(self, start: int, end: int, number: int) -> Span:
        size = end - start
        return Span(start, size, number, self.read(start, size) if size <= MAX_ROW_BYTES else None)

    def parse(self, data: Any, number: int) -> Row | Fault:
        """The object of ``NAME.json``, with the images that it names, or else all, as bytes."""
        if data is None:
            return super().parse(data, number)
        members: dict[str, bytes] = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if content is not None:
                        members[member.name.rpartition("/")[2]] = content.read()
        except tarfile.TarError as error:
            return self.fault(number, f"the shard is damaged here ({error})")
        text = next((name for name in members if name.lower().endswith(".json")), None)
        if text is None:
            return self.fault(number, f"no .json beside {', '.join(members)}"[:200])
        try:
            raw = decode(members[text])
        except ValueError as error:
            return self.fault(number, f"{text}: {error}")
        images = {name: content for name, content in members.items() if _ending(name) in IMAGE_ENDINGS}
        return self.row(number, {"id": text[: text.index(".")], **_with_images(raw, images)})


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _with_images(raw: dict[str, Any], images: dict[str, bytes]) -> dict[str, Any]:
    """The row with its images' bytes in the place of their names."""
    for field in ("image", "images"):
        if raw.get(field):
            names = raw[field] if isinstance(raw[field], list) else [raw[field]]
            return {**raw, field: [images.get(str(name).rpartition("/")[2], name) for name in names]}
    return {**raw, "image": [images[name] for name in sorted(images)]} if images else raw


class Parquet(Container):
    """A Parquet file, one row group in memory at a time."""

    place = "row"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise DataError(f"{path} needs pyarrow: pip install 'mini-internvl[data]'") from None
        try:
            metadata = pyarrow.parquet.read_metadata(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is no Parquet file, or it is cut off ({error}); fetch it again") from None
        self.groups = [0]
        """First row of each group, and the number of rows."""
        for group in range(metadata.num_row_groups):
            self.groups.append(self.groups[-1] + metadata.row_group(group).num_rows)
        self._held: tuple[int, Any] = (-1, None)

    def spans(self, update: Update) -> Iterator[Span]:
        for number in range(self.groups[-1]):
            yield Span(number, 0, number + 1, self.read(number, 0))
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                update(chunk)

    def read(self, start: int, size: int) -> Any:
        """The row as an object."""
        import bisect

        import pyarrow.parquet

        group = bisect.bisect_right(self.groups, start) - 1
        if self._held[0] != group:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                self._held = (group, file.read_row_group(group, use_threads=False))
        return self._held[1].slice(start - self.groups[group], 1).to_pylist()[0]

    def parse(self, data: Any, number: int) -> Row | Fault:
        return self.row(number, data)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": (-1, None)}
