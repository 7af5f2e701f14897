"""Lines of text in reading order: the lines of a column from top to bottom, columns from left to right.

A column needs at least two lines beside at least two others, with free space between them from top to bottom; what
stands alone beside something is read with its row. A line across all columns, such as a title, ends them, and so does a
wide space below all of them. Chinese text that runs from top to bottom is not put in order.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from mini_internvl.data.ocr import Line

GUTTER = 0.6  # least free space between columns, in heights of a line
SPACE = 2.5  # most free space between two rows of columns, in heights of a line
SAME_ROW = 0.5  # least share of the lower box that two boxes of a row have in common

Rows = list[list[Line]]  # lines side by side, from top to bottom


def in_reading_order(lines: Sequence[Line]) -> list[Line]:
    """The same lines in the order in which they are read."""
    if not lines:
        return []
    height = statistics.median(line.box[3] - line.box[1] for line in lines)
    return _ordered(list(lines), height)


def _ordered(lines: list[Line], height: float) -> list[Line]:
    rows = _rows(lines)
    found, start = list[Line](), 0
    while start < len(rows):
        end, border = _columns(rows, start, height)
        block = [line for row in rows[start:end] for line in row]
        if border is None:
            found += block
        else:
            found += _ordered([line for line in block if line.box[0] < border], height)
            found += _ordered([line for line in block if line.box[0] >= border], height)
        start = end
    return found


def _rows(lines: Sequence[Line]) -> Rows:
    """Lines side by side, from top to bottom, each row from left to right."""
    rows: Rows = []
    for line in sorted(lines, key=lambda one: (one.box[1], one.box[0])):
        if rows and any(_beside(line, other) for other in rows[-1]):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda one: (one.box[0], one.box[1])) for row in rows]


def _beside(one: Line, other: Line) -> bool:
    top, bottom = max(one.box[1], other.box[1]), min(one.box[3], other.box[3])
    least = min(one.box[3] - one.box[1], other.box[3] - other.box[1])
    apart = one.box[2] <= other.box[0] or other.box[2] <= one.box[0]
    return apart and bottom - top >= SAME_ROW * least


def _columns(rows: Rows, start: int, height: float) -> tuple[int, float | None]:
    """The end of the longest block of rows from ``start`` that stands in columns, and where the first column ends.

    A row that does not begin columns is a block alone, without a border.
    """
    covered = list[tuple[int, int]]()
    left = min(line.box[0] for row in rows for line in row)
    right = max(line.box[2] for row in rows for line in row)
    bottom = max(line.box[3] for line in rows[start])
    found: tuple[int, float | None] = (start + 1, None)
    for end in range(start, len(rows)):
        if min(line.box[1] for line in rows[end]) - bottom > SPACE * height:
            break
        bottom = max(bottom, *(line.box[3] for line in rows[end]))
        covered = _merged(covered + [(line.box[0], line.box[2]) for line in rows[end]])
        border = _border(rows[start : end + 1], covered, GUTTER * height)
        if border is not None:
            found = (end + 1, border)
        elif len(covered) == 1 and covered[0] == (left, right):
            break
    return found


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that do not touch and cover the same."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def _border(rows: Rows, covered: Sequence[tuple[int, int]], gutter: float) -> float | None:
    """Where the first column ends: free space that is wide enough, with two rows at least on each side."""
    for (_, last), (first, _) in itertools.pairwise(covered):
        if first - last >= gutter:
            border = (first + last) / 2
            before = sum(any(line.box[0] < border for line in row) for row in rows)
            after = sum(any(line.box[0] >= border for line in row) for row in rows)
            if before >= 2 and after >= 2:
                return border
    return None
