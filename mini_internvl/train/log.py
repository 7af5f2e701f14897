"""The logs of a run: ``metrics.jsonl``, ``speed.jsonl`` and ``quarantine.jsonl``, a line at a time.

``metrics.jsonl`` and ``quarantine.jsonl`` hold what follows from recipe and data alone. A state remembers how long they
were, and a run that goes on from it cuts them back to that, so that they are those of an uninterrupted run, byte for
byte. What depends on the clock stands in ``speed.jsonl``, where repeated steps stay; :func:`read_log` leaves them out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS, SPEED, QUARANTINE = "metrics.jsonl", "speed.jsonl", "quarantine.jsonl"
EXACT = (METRICS, QUARANTINE)  # logs that a state measures, and that are cut back to it


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows, each a line; a number that is not finite is left out, as JSON has none."""
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # after a line that a kill has torn
        for row in rows:
            finite = {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}
            file.write(json.dumps(finite, ensure_ascii=False).encode() + b"\n")


def lengths(folder: Path) -> dict[str, int]:
    """Bytes of the exact logs; 0 of one that is not there."""
    return {name: (folder / name).stat().st_size if (folder / name).exists() else 0 for name in EXACT}


def cut(folder: Path, wanted: Mapping[str, int]) -> None:
    """Cut the exact logs back to the lengths that a state has measured."""
    for name in EXACT:
        if (folder / name).exists() and (folder / name).stat().st_size > wanted.get(name, 0):
            os.truncate(folder / name, wanted.get(name, 0))


def read_lines(path: str | Path) -> Iterator[dict[str, Any] | None]:
    """Each line of a log as it was written, repeated steps too; ``None`` for one that is no step, torn by a kill."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row
            elif line.strip():
                yield None


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a log in order, of repeated steps the last ones; torn lines are left out."""
    rows: list[dict[str, Any]] = []
    for row in filter(None, read_lines(path)):
        while rows and rows[-1].get("stage") == row.get("stage") and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    return rows
