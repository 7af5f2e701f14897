"""Files of rows, read row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mini_internvl.data import DataError, Fault, Row


def open_rows(path: str | Path) -> Iterator[Row | Fault]:
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield parse(line, file=path, place=f"line {number}", number=number)


def parse(data: bytes, *, file: Path, place: str, number: int) -> Row | Fault:
    try:
        raw = json.loads(data)
    except json.JSONDecodeError as error:
        return Fault(file=file, place=place, reason=f"not valid JSON ({error.msg})")
    if not isinstance(raw, dict):
        return Fault(file=file, place=place, reason="a row is an object with messages or conversations")
    return Row(file=file, place=place, raw=raw, id=str(raw.get("id", number)))
