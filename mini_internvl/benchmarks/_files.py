"""Official benchmark files: found in the data folder, read row by row, every fault listed with its row.

All faults of a file are collected before it is refused, so that one message names everything to fix.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl import files
from mini_internvl.data import DataError, Fault
from mini_internvl.data.containers import Table
from mini_internvl.data.files import scan

BROKEN, NOT_ONE, NONE = FAULTS = ("broken base64", "the base64 is no image", "no image")
"""What can be wrong with a table's image."""


class Faults:
    """Collects what is wrong with a file, then raises once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[Fault] = []

    def add(self, row: int | str, what: str) -> None:
        """Note a fault of a row (a number from 1, the header not counted, or a key)."""
        self.found.append(Fault(file=self.path, place=f"row {row}", reason=what))

    def check(self, hint: str = "get the file again from its source") -> None:
        """Raise DataError if anything was noted."""
        if self.found:
            raise DataError.of(self.found, hint)


def chosen(what: str, value: str | None, known: Collection[str]) -> str:
    """The named split or protocol; ``None`` is the first of those known.

    Raises:
        ValueError: there is none of that name.
    """
    if value is None:
        return next(iter(known))
    if value not in known:
        raise ValueError(f'the {what} "{value}" is not known; there are: {", ".join(known)}')
    return value


def locate(root: str | Path, benchmark: str, *names: str) -> list[Path]:
    """The named files in ``root/benchmark`` or ``root``, in the order of ``names``.

    Raises:
        DataError: the folder or a file is missing; the message lists every missing one.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"the data folder {root} does not exist; see docs/benchmarks/{benchmark}.md for what goes there"
        )
    for folder in (root / benchmark, root):
        if all((folder / name).exists() for name in names):
            return [folder / name for name in names]
    folder = root / benchmark if (root / benchmark).is_dir() else root
    missing = [name for name in names if not (folder / name).exists()]
    raise DataError(
        f"{folder} lacks {', '.join(missing)}; docs/benchmarks/{benchmark}.md says where the official files come from"
    )


def read_rows(path: Path, required: Sequence[str], *, key: str | None = None) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, of a JSON list, or of the list under ``key``, each with the required fields.

    Raises:
        DataError: lists the rows that are no objects, or lack a field.
    """
    content: Any
    if key is None:
        content = (row.reason if isinstance(row, Fault) else row.raw for row in scan(path))
    else:
        whole = read_json(path)
        content = whole.get(key) if isinstance(whole, dict) else None
        if not isinstance(content, list):
            raise DataError(f"{path} must hold a list under {key!r}; get the file again from its source")
    faults = Faults(path)
    rows = []
    for number, row in enumerate(content, 1):
        if not isinstance(row, dict):
            faults.add(number, row if key is None else "not an object with named fields")
            continue
        if missing := [name for name in required if name not in row]:
            faults.add(number, f"no {', '.join(missing)}")
        rows.append(row)
    faults.check()
    return rows


def read_json(path: Path) -> Any:
    """The content of a JSON file; DataError names it if there is none."""
    return files.read_json(path, limit=1 << 32, error=DataError)


IMAGES = "image"
"""The column of a table that holds images as base64."""
SHORT = 64
"""Longest cell of that column that names another row instead."""


@dataclass(frozen=True, kw_only=True)
class TableImage:
    """An image inside a table, read when it is needed: the largest tables hold 9 GB of them."""

    table: Table
    """The table, with its header."""
    start: int
    """First byte of its row."""
    size: int
    """Bytes of the row."""
    column: str
    """Name of its column."""
    part: int
    """Number of the image in the cell."""

    def read(self) -> bytes:
        """The image's bytes."""
        row = self.table.parse(self.table.read(self.start, self.size), 0)
        if isinstance(row, Fault):
            raise DataError(f"{self.table.path} was changed while it was read")
        return base64.b64decode(_list_cell(row.raw[self.column])[self.part])


def read_tsv(path: Path, required: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a tab-separated file with a header, as texts; an empty cell is an empty text.

    Nothing is guessed: an option that reads "None" or "NA" stays that text. Images (column "image") are checked, but
    stay in the file: the cell becomes a list of TableImage, or the text of what is wrong with it.

    Raises:
        DataError: a required column or a cell is missing, or a row is no UTF-8 text.
    """
    files.check_file(path, error=DataError)
    table, faults = Table(path), Faults(path)
    rows: list[dict[str, Any]] = []
    for start, size, number, data in table.spans():
        row = table.parse(data, number)
        if isinstance(row, Fault):
            faults.add(number, row.reason)
            continue
        cells = dict(row.raw)
        for column in cells:
            if column.lower() == IMAGES and (len(cells[column]) > SHORT or not cells[column].strip()):
                cells[column] = _images(cells[column], table=table, start=start, size=size, column=column)
        rows.append(cells)
    if missing := [name for name in required if name not in table.header]:
        raise DataError(
            f"{path}: the header has no column {', '.join(missing)}; is it the official tab-separated file?"
        )
    faults.check()
    return rows


def _images(cell: str, **place: Any) -> list[TableImage] | str:
    """The images of a cell, or what is wrong with them."""
    try:
        parts = _list_cell(cell)
        for part in parts:
            decode_image(part)
    except ValueError as error:
        return str(error)
    return [TableImage(**place, part=number) for number in range(len(parts))]


def decode_image(text: str) -> bytes:
    """The bytes of a base64 image.

    Raises:
        ValueError: the text is no base64, or no image.
    """
    import io

    from PIL import Image

    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(BROKEN) from None
    try:
        Image.open(io.BytesIO(data)).close()  # reads the header only
    except (OSError, ValueError):
        raise ValueError(NOT_ONE) from None
    return data


def tsv_images(path: Path, rows: Sequence[Mapping[str, Any]], column: str = IMAGES) -> list[list[TableImage]]:
    """The images of every row that :func:`read_tsv` gave.

    A short cell is the index of another row, whose images are meant (VLMEvalKit's way not to repeat them).

    Raises:
        DataError: lists the rows with a broken or missing image.
    """
    faults = Faults(path)
    by_index = {row.get("index", str(number)): row for number, row in enumerate(rows)}
    found: list[list[TableImage]] = []
    for number, row in enumerate(rows, 1):
        cell = row[column]
        if isinstance(cell, str) and cell in by_index:
            cell = by_index[cell][column]
        if isinstance(cell, str):
            faults.add(number, cell if cell in FAULTS else BROKEN)
            cell = []
        found.append(cell)
    faults.check()
    return found


def _list_cell(cell: str) -> list[str]:
    if not cell.strip():
        raise ValueError(NONE)
    if not cell.startswith("["):
        return [cell]
    return [part.strip(" '\"") for part in cell.strip("[] ").split(",")]


def image_paths(path: Path, names: Sequence[str], *folders: Path) -> Iterator[Path]:
    """Where the images named by a file's rows are: relative to the first of ``folders`` that has them.

    Raises:
        DataError: lists the rows whose image is missing.
    """
    faults = Faults(path)
    found = []
    places: dict[str, Path | None] = {}  # many rows ask about one image
    for number, name in enumerate(names, 1):
        if name not in places:
            places[name] = next((folder / name for folder in folders if (folder / name).is_file()), None)
        place = places[name]
        if place is None:
            faults.add(number, f"the image {name} is missing")
        else:
            found.append(place)
    faults.check(f"put the images below {' or '.join(str(folder) for folder in dict.fromkeys(folders))}")
    yield from found
