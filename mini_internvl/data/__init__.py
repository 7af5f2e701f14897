"""What training and evaluation read: files as rows with their places, rows as samples.

``files`` reads people's files row by row, ``formats`` holds one file per row format, ``rows`` turns rows into samples
and back, ``sources`` gives training its samples by number. A row that cannot be used becomes a Fault, never an
exception, so that one pass names every bad row of a file. Importing this package imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LISTED_FAULTS = 8  # that a message shows; the others are counted


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record of a file, as the file holds it."""

    file: Path
    place: str  # where it stands in the file: ``"line 12"`` or ``"row 3"``
    raw: Mapping[str, Any]
    id: str  # the record's ``id``, or its number, counted from 1


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A record that cannot be used, and the reason, in words that say how to mend it; as text ``FILE:12: reason``."""

    file: Path
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{where(self)}: {self.reason}"


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the rows and what to do."""

    @classmethod
    def of(cls, faults: Sequence[Fault], hint: str = "", *, count: int = 0) -> DataError:
        """One error for many faults, the first of them in full; ``count`` where more were met than are kept."""
        first, *others = faults[:LISTED_FAULTS]
        shown = [str(first)]
        for fault in others:
            shown.append(f"{fault.place}: {fault.reason}" if fault.file == first.file else str(fault))
        more = max(count, len(faults)) - len(shown)
        return cls("; ".join(filter(None, [*shown, f"and {more} more" if more else "", hint])))


def where(record: Row | Fault) -> str:
    """``FILE:12`` of a line, ``FILE: row 3`` of anything else."""
    kind, _, number = record.place.partition(" ")
    return f"{record.file}:{number}" if kind == "line" else f"{record.file}: {record.place}"


def place_of(where: str) -> tuple[str, str]:
    """File and place that :func:`where` wrote: ``"rows.jsonl:12"`` -> ``("rows.jsonl", "line 12")``."""
    file, separator, place = where.rpartition(": ")
    if separator:
        return file, place
    file, _, number = where.rpartition(":")
    return file, f"line {number}"
