"""Tables as a kind of file that holds rows: a header, and a row a line, between commas, semicolons or tabs."""

from __future__ import annotations

import csv
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.containers import MAX_ROW_BYTES, Container, Span

UTF_16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}  # the first bytes of a file


class Table(Container):
    """A header and one row a line; every cell is a text.

    Cells stand between tabs; in a .csv between commas or, where its header has none, between semicolons or tabs. Texts
    are UTF-8, or UTF-16 where the file begins with its mark, as Excel's "Unicode text" does.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

    @functools.cached_property
    def encoding(self) -> str:
        with self.path.open("rb") as file:
            return UTF_16.get(file.read(2), "utf-8")

    @functools.cached_property
    def delimiter(self) -> str:
        header = next(self._lines([]), "") if self.path.suffix.lower() == ".csv" else ""
        return next((mark for mark in ",;\t" if mark in header), ",") if header else "\t"

    @functools.cached_property
    def header(self) -> list[str]:
        return next(csv.reader(self._lines([]), delimiter=self.delimiter), [])

    def spans(self) -> Iterator[Span]:
        return (span for span, _ in self._split())

    def rows(self) -> Iterator[Row | Fault]:
        """Every row, in order; its line is taken apart once where nothing is wrong with it."""
        for (_, _, number, data), cells in self._split():
            if data is None or len(cells) != len(self.header) or self.twice or not _is_text(data, self.encoding):
                yield self.parse(data, number)
            else:
                yield self._row(dict(zip(self.header, cells, strict=True)), number)

    def _split(self) -> Iterator[tuple[Span, list[str]]]:
        """Every row with its cells."""
        taken: list[bytes] = []
        start = 0
        try:
            for number, cells in enumerate(csv.reader(self._lines(taken), delimiter=self.delimiter)):
                data = b"".join(taken)
                taken.clear()
                if number and cells:
                    yield Span(start, len(data), number, data if len(data) <= MAX_ROW_BYTES else None), cells
                start += len(data)
        except csv.Error as error:
            raise DataError(f"{self.path} is no table of rows ({error}); fetch it again") from None

    def _lines(self, taken: list[bytes]) -> Iterator[str]:
        """The lines as texts; their bytes are added to ``taken``."""
        errors = "surrogateescape" if self.encoding == "utf-8" else "replace"
        with self.path.open("rb") as file:
            for number, line in enumerate(file if self.encoding == "utf-8" else _lines_of_16_bits(file)):
                taken.append(line)
                text = line.decode(self.encoding, errors)
                yield text.removeprefix("\ufeff") if number == 0 else text

    @functools.cached_property
    def twice(self) -> list[str]:
        """Names of columns that the header has more than once."""
        return sorted({name for name in self.header if name and self.header.count(name) > 1})

    def decode(self, data: bytes) -> dict[str, Any]:
        try:
            (cells,) = csv.reader([data.decode(self.encoding)], delimiter=self.delimiter)
        except UnicodeDecodeError as error:
            raise ValueError(f"not valid {self.encoding.upper()} ({error.reason}); save it as UTF-8") from None
        except (ValueError, csv.Error) as error:
            raise ValueError(f"not one row of a table ({error})") from None
        if len(cells) != len(self.header):
            raise ValueError(f"{len(cells)} cells, the header has {len(self.header)}")
        if self.twice:
            raise ValueError(f"the header names {', '.join(self.twice)} more than once; give each column its own name")
        return dict(zip(self.header, cells, strict=True))


def _lines_of_16_bits(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a text in UTF-16: a line feed is two bytes, at an even place."""
    line = b""
    while more := file.readline():
        line += more
        if len(line) % 2:  # perhaps the first byte of a line feed, or of another character
            line += file.read(1)
        if line[-2:] in (b"\n\0", b"\0\n"):
            yield line
            line = b""
    if line:
        yield line


def _is_text(data: bytes, encoding: str) -> bool:
    try:
        return (encoding == "utf-8" and data.isascii()) or bool(data.decode(encoding))
    except UnicodeDecodeError:
        return False
