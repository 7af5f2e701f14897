"""The training log ``metrics.jsonl``: one line a step, appended and never rewritten.

A run that goes on from a saved state repeats the steps after it, and a kill may tear a line. Both are settled when the
log is read: :func:`read_log` returns its rows, the report gathers columns from :func:`read_lines`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to the log of one stage."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            with path.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")  # after a line that a kill has torn

    def write(self, step: int, **values: Any) -> None:
        """Append one line; a number that is not finite is left out, as JSON has none."""
        finite = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "step": step, **finite}) + "\n")


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
