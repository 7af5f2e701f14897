"""The page of what training data holds: lengths, tiles, answers and sources, as charts and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mini_internvl.files import write_text
from mini_internvl.report.page import render, significant
from mini_internvl.report.svg import histogram

BINS = 36  # of a chart, at most


class Chart(NamedTuple):
    """A chart with its heading."""

    title: str
    svg: str
    note: str


class Table(NamedTuple):
    """A table with its heading."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


def distribution(title: str, unit: str, values: np.ndarray) -> Chart | None:
    """How some values of rows are spread; ``None`` where there are none or all are 0.

    The largest 0.5 % stand in the last bar where they would leave the others no room.
    """
    if not len(values) or not values.any():
        return None
    low, high = int(values.min()), int(values.max())
    far = int(np.percentile(values, 99.5))
    cut = high > 2 * max(far, 1)
    top = far if cut else high
    width = max(1, -(-(top + 1 - low) // BINS))
    edges = np.arange(low, top + width + 1, width)
    counts, _ = np.histogram(np.minimum(values, edges[-1] - 1), bins=edges)
    note = f"median {significant(float(np.median(values)))}, largest {high:,}"
    if cut:
        note += f"; all from {edges[-2]:,} on stand in the last bar"
    svg = histogram(title=title, x_title=unit, y_title="rows", edges=edges.tolist(), counts=counts.tolist())
    return Chart(title, svg, note)


def write_statistics(
    path: Path, *, title: str, facts: Sequence[tuple[str, str]], charts: Sequence[Chart], tables: Sequence[Table]
) -> Path:
    """Write the page; ValueError where jinja2 is missing."""
    page = render("statistics.html", title=title, facts_=facts, charts=charts, tables=tables)
    write_text(path, page, errors="replace")
    return path
