"""Kinds of files that hold rows: JSON lines, a JSON list, a WebDataset shard; others are in ``table``, ``parquet``.

Each gives the spans of its rows in one pass, in constant memory, and parses the bytes of one span. What is wrong with a
row becomes a Fault; only a file that cannot be read at all raises DataError.
"""

from __future__ import annotations

import abc
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mini_internvl.data import DataError, Fault, Row

MAX_ROW_BYTES = 64 << 20  # bytes of the largest row that is read: images inside a row count
BOM = b"\xef\xbb\xbf"
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jp2", "ppm", "ico", "dcm", "dicom")
_CHUNK = 1 << 20
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|(\\?)\Z)|([\[\]{},])', re.DOTALL)
"""A string, whole or (group 1: its last backslash) cut off by the end of the bytes; a bracket or comma (group 2)."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Span(NamedTuple):
    """Where a row stands."""

    start: int  # its first byte; the row's number in Parquet
    size: int
    number: int  # its line in JSON lines, else its number, from 1
    data: Any  # its content, as :meth:`Container.read` gives it


def decode_object(data: bytes) -> dict[str, Any]:
    """The object of a JSON text; ValueError says in plain words what is wrong with it."""
    try:
        raw = json.loads(data.decode("utf-8"))
        if _SURROGATE.search(data):
            json.dumps(raw, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 ({error.reason} at byte {error.start + 1}); save it as UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("a text holds half a character (a lone surrogate such as \\ud83d); take it out") from None
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        raise ValueError(f"not valid JSON ({what} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not valid JSON (lists or objects nested too deep)") from None
    except ValueError:  # what int() says of its limit
        raise ValueError("not valid JSON (a number has too many digits)") from None
    if not isinstance(raw, dict):
        raise ValueError("not an object with named fields")
    return raw


class Container(abc.ABC):
    """One file of rows."""

    place = "row"

    def __init__(self, path: Path) -> None:
        self.path = path

    @abc.abstractmethod
    def spans(self) -> Iterator[Span]:
        """Every row, in order."""

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Start, size and number of every row, in order."""
        for start, size, number, _ in self.spans():
            yield start, size, number

    def batches(self, rows: int, size: int) -> Iterator[list[tuple[int, int, int]]]:
        """The same, so many rows or bytes at a time."""
        batch, total = list[tuple[int, int, int]](), 0
        for place in self.places():
            batch.append(place)
            total += place[1]
            if len(batch) == rows or total >= size:
                yield batch
                batch, total = [], 0
        if batch:
            yield batch

    def contents(self, places: Sequence[tuple[int, int, int]]) -> Iterator[Any]:
        """The contents of rows, the file opened once."""
        with self.path.open("rb") as file:
            for start, size, _ in places:
                file.seek(start)
                yield file.read(size) if size <= MAX_ROW_BYTES else None

    def decode(self, data: Any) -> dict[str, Any]:
        """The row that a span's content holds; ValueError says what is wrong with it."""
        return decode_object(data)

    def read(self, start: int, size: int) -> Any:
        """The content of one span; ``None`` where it is too large."""
        if size > MAX_ROW_BYTES:
            return None
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def parse(self, data: Any, number: int) -> Row | Fault:
        """The row of a span, at its place."""
        place = f"{self.place} {number}"
        try:
            if data is None:
                raise ValueError(f"the row has more than {MAX_ROW_BYTES:,} bytes; keep images in files beside it")
            raw = self.decode(data)
        except ValueError as error:
            return Fault(file=self.path, place=place, reason=str(error))
        return self._row(raw, number)

    def _row(self, raw: dict[str, Any], number: int) -> Row:
        named = raw.get("id")
        return Row(file=self.path, place=f"{self.place} {number}", raw=raw, id=str(number if named is None else named))

    def rows(self) -> Iterator[Row | Fault]:
        """Every row, in order."""
        for _, _, number, data in self.spans():
            yield self.parse(data, number)


class JsonLines(Container):
    """One JSON object a line; blank lines are passed over."""

    place = "line"

    def spans(self) -> Iterator[Span]:
        with self.path.open("rb") as file:
            start = number = 0
            while line := file.readline(MAX_ROW_BYTES + 1):
                number += 1
                size = len(line)
                if size > MAX_ROW_BYTES:
                    while not line.endswith(b"\n") and (line := file.readline(_CHUNK)):
                        size += len(line)
                    yield Span(start, size, number, None)
                elif not line.isspace():
                    skipped = len(BOM) if start == 0 and line.startswith(BOM) else 0
                    yield Span(start + skipped, size - skipped, number, line[skipped:])
                start += size


class JsonList(Container):
    """One JSON list of objects, over as many lines as it likes (LLaVA's own form); with ``key``, the list under it."""

    def __init__(self, path: Path, key: str = "") -> None:
        super().__init__(path)
        self.key = key

    def spans(self) -> Iterator[Span]:
        depth = start = number = 0
        with self.path.open("rb") as file:
            brackets = _brackets(file)
            if self.key:
                depth, start = 1, self._enter(brackets)
            for position, kind in brackets:
                if kind in b"[{":
                    depth += 1
                    start = position + 1 if depth == 1 else start
                elif kind in b"]}":
                    depth -= 1
                if depth == 0 or (depth == 1 and kind == b","):
                    data = self.read(start, position - start)
                    if number or kind == b"," or data is None or data.strip():
                        number += 1
                        yield Span(start, position - start, number, data)
                    start = position + 1
                if self.key and depth == 0:
                    return
        if depth:
            yield Span(start, 0, number + 1, b"")

    def _enter(self, brackets: Iterator[tuple[int, bytes]]) -> int:
        """Where the list under ``key`` begins; DataError where the file holds none."""
        wanted = re.compile(rb'\s*"' + re.escape(self.key.encode()) + rb'"\s*:\s*')
        depth = start = 0
        for position, kind in brackets:
            if depth == 1 and kind == b"[" and wanted.fullmatch(self.read(start, position - start) or b""):
                return position + 1
            depth += (kind in b"[{") - (kind in b"]}")
            if depth == 1:
                start = position + 1
        raise DataError(f"{self.path} must hold a list under {self.key!r}; get the file again from its source")

    def decode(self, data: bytes) -> dict[str, Any]:
        if data == b"":
            raise ValueError("not valid JSON (nothing between two commas, or the list is cut off)")
        return decode_object(data)


class JsonMembers(JsonList):
    """One JSON object, each of its members a row: its name as ``id``, its content as ``value``."""

    place = "member"

    def decode(self, data: bytes) -> dict[str, Any]:
        if not data.strip():
            raise ValueError("not valid JSON (nothing between two commas, or the object is cut off)")
        [(name, value)] = decode_object(b"{" + data + b"}").items()
        return {"id": name, "value": value}


def _brackets(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(position, byte) of every bracket and comma outside of strings."""
    done, carry = 0, b""
    while chunk := file.read(_CHUNK):
        buffer, base = carry + chunk, done - len(carry)
        done, carry = done + len(chunk), b""
        for token in _TOKEN.finditer(buffer):
            if token.lastindex == 2:
                yield base + token.start(), token[2]
            elif token.lastindex == 1:  # a string that goes on in the next chunk
                carry = b'"' + token[1]


class Shard(Container):
    """A WebDataset tar: members with one name up to the first dot are a row, ``NAME.json`` and its images."""

    def spans(self) -> Iterator[Span]:
        for start, size, number in self.places():
            yield Span(start, size, number, self.read(start, size))

    def places(self) -> Iterator[tuple[int, int, int]]:
        number, key, start, end = 0, "", 0, 0
        try:
            with tarfile.open(self.path, "r:") as tar:
                for member in tar:
                    vars(tar)["members"].clear()  # it would keep every member
                    folder, slash, file = member.name.rpartition("/")
                    name = folder + slash + file.partition(".")[0] if member.isfile() else key
                    if name != key:
                        if key:
                            number += 1
                            yield start, end - start, number
                        key, start = name, member.offset
                    end = member.offset_data + (member.size + 511) // 512 * 512
        except tarfile.TarError as error:
            raise DataError(f"{self.path} is no tar file, or it is cut off ({error}); fetch it again") from None
        if key:
            yield start, end - start, number + 1

    def decode(self, data: bytes) -> dict[str, Any]:
        """The object of ``NAME.json``, with the images that it names, or else all, as bytes."""
        members = self.members(data)
        text = next((name for name in members if name.lower().endswith(".json")), None)
        if text is None:
            raise ValueError(f"no .json beside {', '.join(members)}"[:200])
        try:
            raw = decode_object(members[text])
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from None
        endings = {name: name.rpartition(".")[2].lower() for name in members}
        images = {name: content for name, content in members.items() if endings[name] in IMAGE_ENDINGS}
        return {"id": text[: text.index(".")], **_with_images(raw, images)}

    def members(self, data: bytes) -> dict[str, bytes]:
        """File name -> content of a row; ValueError where the shard is damaged there."""
        found: dict[str, bytes] = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    if content := tar.extractfile(member):
                        found[member.name.rpartition("/")[2]] = content.read()
        except tarfile.TarError as error:
            raise ValueError(f"the shard is damaged here ({error})") from None
        return found


def _with_images(raw: dict[str, Any], images: dict[str, bytes]) -> dict[str, Any]:
    """The row with its images' bytes in the place of their names."""
    for field in ("image", "images"):
        if raw.get(field):
            names = raw[field] if isinstance(raw[field], list) else [raw[field]]
            return {**raw, field: [images.get(str(name).rpartition("/")[2], name) for name in names]}
    if images and isinstance(raw.get("messages"), list):
        messages = [_with_parts(message, images) for message in raw["messages"]]
        if messages != raw["messages"]:
            return {**raw, "messages": messages}
    return {**raw, "image": [images[name] for name in sorted(images)]} if images else raw


def _with_parts(message: Any, images: dict[str, bytes]) -> Any:
    """The message with images' bytes in the place of their names."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message

    def one(part: Any) -> Any:
        name = part.get("image") if isinstance(part, dict) else None
        return {**part, "image": images[name]} if isinstance(name, str) and name in images else part

    return {**message, "content": [one(part) for part in content]}
