"""Official benchmark files: found in the data folder, read row by row, every fault listed with its row.

All faults of a file are collected before it is refused, so that one message names everything to fix.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl import files
from mini_internvl.data import DataError, Fault
from mini_internvl.data.files import scan
from mini_internvl.data.table import Table

PICKLES = (".pkl", ".pk", ".pickle")  # endings of their names
Check = Callable[[dict[str, Any]], Iterable[str]]  # what is wrong with a row


class Faults:
    """Collects what is wrong with a file, then raises once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[Fault] = []

    def add(self, row: int | str, *reasons: str) -> None:
        """Note faults of a row (a number from 1, the header not counted, or a key)."""
        self.found += [Fault(file=self.path, place=f"row {row}", reason=reason) for reason in reasons]

    def check(self, hint: str = "get the file again from its source") -> None:
        """Raise DataError if anything was noted."""
        if self.found:
            raise DataError.of(self.found, hint)


def chosen(what: str, value: str | None, known: Collection[str]) -> str:
    """The named split or protocol, for ``None`` the first; ValueError lists those that there are."""
    if value is None:
        return next(iter(known))
    if value not in known:
        raise ValueError(f'the {what} "{value}" is not known; there are: {", ".join(known)}')
    return value


def find(root: str | Path, benchmark: str, names: Sequence[str], folders: Sequence[str] = ()) -> Path | None:
    """The first of the named files that is in ``root/benchmark``, ``root/FOLDER`` or ``root``.

    With ``folders``, InternVL's names of a benchmark, the first folder with one of the files counts, otherwise the
    first name that is found in any.
    """
    every = [Path(root) / folder for folder in (benchmark, *folders, "")]
    by_folder = (folder / name for folder in every for name in names)
    by_name = (folder / name for name in names for folder in every)
    return next((place for place in (by_folder if folders else by_name) if place.is_file()), None)


def with_val(name: str) -> list[str]:
    """A file's places in a benchmark's folder: in ``val/`` as InternVL publishes its domain data, or directly."""
    return [f"val/{name}", name]


def locate(root: str | Path, benchmark: str, names: Sequence[str], folders: Sequence[str] = ()) -> Path:
    """As :func:`find`; DataError says which file is missing and where it comes from."""
    help_page, root = f"docs/benchmarks/{benchmark}.md", Path(root)
    if not root.is_dir():
        raise DataError(f"the data folder {root} does not exist; see {help_page} for what goes there")
    path = find(root, benchmark, names, folders)
    if path is None:
        folder = root / benchmark if (root / benchmark).is_dir() else root
        lacking = " or ".join(dict.fromkeys(name.removeprefix("val/") for name in names))
        raise DataError(f"{folder} lacks {lacking}; {help_page} says where the official files come from")
    return path


def refuse_pickles(root: Path, instead: str) -> None:
    """DataError where the folder holds pickle files, which are never opened; ``instead`` says what to get."""
    if pickles := sorted(path for path in root.rglob("*") if path.suffix in PICKLES):
        raise DataError(f"{pickles[0]} is a pickle, which can run code when it is opened; get {instead} instead")


def read_json(path: Path) -> Any:
    """The content of a JSON file; DataError names it if there is none."""
    return files.read_json(path, limit=1 << 32, error=DataError)


def read_rows(
    path: Path,
    required: Sequence[str],
    *,
    key: str | None = None,
    texts: Sequence[str] = (),
    names: Sequence[str] = (),
    check: Check = lambda row: (),
) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, of a JSON list, or of the list under ``key`` of a JSON object.

    Every row must have the fields ``required``, ``texts`` (which must be texts) and ``names`` (texts or whole numbers);
    ``check`` says what else is wrong with it. DataError lists the rows at fault.
    """
    faults = Faults(path)
    rows = []
    for number, found in enumerate(scan(path, key or ""), 1):
        row: Any = None if isinstance(found, Fault) else found.raw
        if isinstance(found, Fault):
            faults.add(number, found.reason)
        elif missing := [name for name in (*texts, *names, *required) if name not in row]:
            faults.add(number, f"no {', '.join(missing)}")
        else:
            faults.add(number, *(f"{name} is no text" for name in texts if not isinstance(row[name], str)))
            wrong = [name for name in names if not isinstance(row[name], str | int)]
            faults.add(number, *(f"{name} is neither text nor whole number" for name in wrong), *check(row))
            rows.append(row)
    faults.check()
    return rows


IMAGES = "image"  # the column of a table that holds images as base64
LONGEST_INDEX = 64  # a shorter cell of that column is the index of another row, whose images are meant
NOT_BASE64 = "broken base64"


@dataclass(frozen=True, kw_only=True)
class TableImage:
    """An image inside a table, read when it is needed: the largest tables hold 9 GB of them."""

    table: Table  # the table, with its header
    start: int  # first byte of its row
    size: int  # bytes of the row
    column: str
    part: int  # number of the image in the cell

    def read(self) -> bytes:
        """The image's bytes."""
        row = self.table.parse(self.table.read(self.start, self.size), 0)
        if isinstance(row, Fault):
            raise DataError(f"{self.table.path} was changed while it was read")
        return base64.b64decode(_list_cell(row.raw[self.column])[self.part])


def read_tsv(
    path: Path,
    required: Sequence[str],
    *,
    check: Check = lambda row: (),
    unique: bool = False,
    rename: Callable[[str], str] = str,
) -> list[dict[str, Any]]:
    """Rows of a tab-separated file with a header, as texts; an empty cell is an empty text.

    Nothing is guessed: an option that reads "None" or "NA" stays that text. Images (column "image") are checked, but
    stay in the file: the cell becomes a list of TableImage. ``check`` says what is wrong with a row, ``unique`` asks
    for an "index" of its own in each, ``rename`` gives a column its name in the rows.

    DataError: a required column or a cell is missing, a row is no UTF-8 text or at fault, an image is broken.
    """
    files.check_file(path, error=DataError)
    table, faults = Table(path), Faults(path)
    rows: list[dict[str, Any]] = []
    by_index: dict[str, dict[str, Any]] = {}
    for start, size, number, data in table.spans():
        row = table.parse(data, number)
        if isinstance(row, Fault):
            faults.add(number, row.reason)
            continue
        cells: dict[str, Any] = {rename(column): cell for column, cell in row.raw.items()}
        image = cells.get(IMAGES)
        if image is not None and (len(image) > LONGEST_INDEX or not image.strip()):
            try:
                column = next(column for column in row.raw if rename(column) == IMAGES)
                place: dict[str, Any] = {"table": table, "start": start, "size": size, "column": column}
                cells[IMAGES] = [TableImage(**place, part=part) for part in range(_check_images(image))]
            except ValueError as error:
                cells[IMAGES] = None
                faults.add(number, str(error))
        index = cells.get("index", str(number - 1))
        if unique and index in by_index:
            faults.add(number, f"the index {index} is there twice")
        by_index[index] = cells
        rows.append(cells)
    header = [rename(column) for column in table.header]
    if missing := [name for name in required if name not in header]:
        raise DataError(
            f"{path}: the header has no column {', '.join(missing)}; is it the official tab-separated file?"
        )
    faults.check()
    if not rows:
        faults.add(1, "there are no rows")
    for number, cells in enumerate(rows, 1):
        if isinstance(cells.get(IMAGES), str):
            cells[IMAGES] = by_index.get(cells[IMAGES], {}).get(IMAGES)
            if not isinstance(cells[IMAGES], list):
                faults.add(number, NOT_BASE64)
        faults.add(number, *check(cells))
    faults.check()
    return rows


def _check_images(cell: str) -> int:
    """The number of a cell's images; ValueError if a text is no base64, or no image."""
    from PIL import Image

    parts = _list_cell(cell)
    for part in parts:
        try:
            data = base64.b64decode(part, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(NOT_BASE64) from None
        try:
            Image.open(io.BytesIO(data)).close()  # reads the header only
        except (OSError, ValueError):
            raise ValueError("the base64 is no image") from None
    return len(parts)


def _list_cell(cell: str) -> list[str]:
    if not cell.strip():
        raise ValueError("no image")
    if not cell.startswith("["):
        return [cell]
    return [part.strip(" '\"") for part in cell.strip("[] ").split(",")]


def image_paths(
    path: Path,
    names: Sequence[str],
    *folders: Path,
    ways: Callable[[str], Sequence[str]] = lambda name: [name],
) -> list[str]:
    """Where the images named by a file's rows are: in the first folder that has them.

    Args:
        path: the file.
        names: one a row.
        folders: searched in this order.
        ways: a name as it may be found there, the likeliest first.

    Raises:
        DataError: lists the rows whose image is missing.
    """
    folders = tuple(dict.fromkeys(folders))
    faults = Faults(path)
    places: dict[str, Path | None] = {}  # many rows ask about one image
    for number, name in enumerate(names, 1):
        if name not in places:
            tried = (folder / way for way in ways(name) if way for folder in folders)
            places[name] = next((place for place in tried if place.is_file()), None)
        if places[name] is None:
            faults.add(number, f"the image {name} is missing")
    faults.check(f"put the images below {' or '.join(map(str, folders))}")
    return [str(places[name]) for name in names]


def image_folders(path: Path, *below: str) -> list[Path]:
    """Folders of the images of an annotation file, which may lie in ``val/`` beside ``images/``, as published.

    Args:
        path: the annotation file.
        below: the folders' places in the published layout, below ``images/``.
    """
    base = path.parent.parent if path.parent.name == "val" else path.parent
    return [*(base / "images" / place for place in below), *(base / place for place in below), base / "images", base]
