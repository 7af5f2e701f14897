"""Small charts as inline SVG that take every colour from the page's style sheet, so that they follow light and dark.

Drawn for a width of about 340 CSS pixels, so that letters keep their size on a phone. Classes name roles (``grid``,
``tick``, ``c1`` ...); nothing here names a colour or a font.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mini_internvl.report.page import render, significant

WIDTH, HEIGHT = 360, 224
LEFT, RIGHT, TOP, BOTTOM = 44, 48, 28, 40
LABEL_GAP = 13.0  # least distance of two value labels, in SVG units
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart: finite (x, y) in order of x, not more than a chart has pixels for.

    ``colour`` is a role, class ``c1`` (solid) or ``c2`` (dashed, so that colour is not needed). A faint line is drawn
    thin behind the others and without a value label; dots mark values that are measured now and then.
    """

    name: str
    points: Sequence[Point]
    colour: int = 1
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point of a trade-off, with its text; the chosen one is drawn large."""

    x: float
    y: float
    text: str
    chosen: bool = False


def line_chart(
    *, title: str, x_title: str, y_title: str, series: Sequence[Series], borders: Sequence[tuple[float, str]] = ()
) -> str:
    """One chart with grid, ticks, axis titles and the last value of each line; an empty text without any point.

    ``borders`` are upright lines with a name, for instance where a stage of training begins. The text for screen
    readers gives the first, lowest, highest and last value of every line.
    """
    drawn = [line for line in series if line.points]
    if not drawn:
        return ""
    scale = _Scale([x for line in drawn for x, _ in line.points], [y for line in drawn for _, y in line.points])
    bold = [line for line in drawn if not line.faint]
    return render(
        "chart.svg",
        label=f"{title}. {'; '.join(describe(line, x_title) for line in bold)}",
        titles=(x_title, y_title),
        scale=scale,
        borders=borders,
        lines=sorted(drawn, key=lambda line: not line.faint),
        ends=_end_labels(bold, scale),
        significant=significant,
        tick_label=_tick_label,
        **{"width": WIDTH, "height": HEIGHT},
        **{"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
    )


def histogram(*, title: str, x_title: str, y_title: str, edges: Sequence[int], counts: Sequence[int]) -> str:
    """Bars of how often whole numbers lie from each of the ``edges`` up to before the next one; an empty text where
    there is none.

    A bar of one number stands above it. The text for screen readers names the highest bar.
    """
    if not any(counts):
        return ""
    names = [_tick_label(low) if high - low == 1 else f"{_tick_label(low)} to {_tick_label(high - 1)}"
             for low, high in itertools.pairwise(edges)]  # fmt: skip
    most = max(range(len(counts)), key=counts.__getitem__)
    drawn = [edge - 0.5 for edge in edges]
    return render(
        "histogram.svg",
        label=f"{title}. {sum(counts):,} {y_title}; most of them, {counts[most]:,}, have {names[most]}",
        titles=(x_title, y_title),
        scale=_Scale(drawn, [0, *counts], whole=True),
        bars=list(zip(drawn, drawn[1:], counts, names, strict=False)),
        tick_label=_tick_label,
        **{"width": WIDTH, "height": HEIGHT},
        **{"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
    )


def trade_off(*, title: str, x_title: str, y_title: str, marks: Sequence[Mark]) -> str:
    """A picture that stands alone, a file with its own style: marks joined in their order, a text beside each."""
    return render(
        "trade_off.svg",
        title=title,
        titles=(x_title, y_title),
        scale=_Scale([mark.x for mark in marks], [mark.y for mark in marks]),
        marks=marks,
        tick_label=_tick_label,
        **{"width": WIDTH, "height": HEIGHT},
        **{"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
    )


def heat_map(*, title: str, x_title: str, y_title: str, values: Sequence[Sequence[float]]) -> str:
    """Rows of values from 0 to 1 as squares, the stronger the higher; the first row is at the top.

    The text for screen readers names the value of the last row and column, and the highest of the last row. Values
    below 0 or that are no number are drawn as 0.
    """
    rows, columns = len(values), len(values[0])
    last = [value if math.isfinite(value) else 0.0 for value in values[-1]]
    best = max(range(columns), key=last.__getitem__)
    side = min((WIDTH - LEFT - 12) / columns, 300 / rows)
    return render(
        "heat_map.svg",
        label=f"{title}. {y_title} {rows - 1} and {x_title} {columns - 1}: {significant(last[-1])}; it is most like "
        f"{best}, {significant(last[best])}",
        titles=(x_title, y_title),
        cells=[
            (LEFT + column * side, TOP + row * side, min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0)
            for row, line in enumerate(values)
            for column, value in enumerate(line)
        ],
        side=side,
        across=[(LEFT + (at + 0.5) * side, int(at)) for at in _ticks(0, columns - 1, 6, least=1.0) if at < columns],
        down=[(TOP + (at + 0.5) * side, int(at)) for at in _ticks(0, rows - 1, 6, least=1.0) if at < rows],
        bottom=TOP + rows * side,
        **{"width": WIDTH, "height": round(TOP + rows * side + BOTTOM), "left": LEFT},
    )


def describe(line: Series, x_title: str) -> str:
    """A line in words: "training: from 3.21 to 0.42 at step 450, between 0.4 and 3.3"."""
    values = [value for _, value in line.points]
    first, last, low, high = map(significant, (values[0], values[-1], min(values), max(values)))
    return (
        f"{line.name}: from {first} to {last} at {x_title} {significant(line.points[-1][0])}, between {low} and {high}"
    )


def error_bars(values: Sequence[tuple[str, float, float]], end: float) -> str:
    """Bars of (class, value, standard error) from 0 to ``end``, one below the other, each with its error as a whisker.

    An image of numbers that stand beside it; hidden from screen readers.
    """

    def along(value: float) -> str:
        share = min(1.0, max(0.0, value / end)) if end > 0 and math.isfinite(value) else 0.0
        return f"{200 * share:.1f}"

    return render("bars.svg", values=values, along=along)


class _Scale:
    """Where values lie on the canvas, and the round numbers beside it."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], *, whole: bool = False) -> None:
        low, high = min(ys), max(ys)
        if math.isclose(low, high):  # means of one value differ by rounding
            low, high = min(0.0, low), max(0.0, high) or (0.0 if low else 1.0)
        elif 0 <= low < high / 2:
            low = 0.0
        self.y_ticks = _ticks(low, high, 4)
        self.y_low, self.y_high = self.y_ticks[0], self.y_ticks[-1]
        self.x_low, self.x_high = min(xs), max(xs)
        if self.x_low == self.x_high:
            self.x_low, self.x_high = self.x_low - 1, self.x_high + 1
        whole = whole or all(float(x).is_integer() for x in xs)
        ticks = _ticks(self.x_low, self.x_high, 5, least=1.0 if whole else 0.0)
        self.x_ticks = [tick for tick in ticks if self.x_low <= tick <= self.x_high]

    def across(self, x: float, shift: float = 0.0) -> str:
        return f"{LEFT + (x - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT) + shift:.1f}"

    def height(self, y: float) -> float:
        return TOP + (self.y_high - y) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def down(self, y: float, shift: float = 0.0) -> str:
        return f"{self.height(y) + shift:.1f}"


def _ticks(low: float, high: float, count: int, least: float = 0.0) -> list[float]:
    """Multiples of a round step of at least ``least`` that cover low..high, about ``count`` + 1 of them."""
    rough = max((high - low) / count, least)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [i * step for i in range(first, last + 1)]


def _tick_label(value: float) -> str:
    return significant(value) if 0 < abs(value) < 0.001 else f"{value:,.9g}"


def _end_labels(lines: Sequence[Series], scale: _Scale) -> list[tuple[int, str, str, str]]:
    """(colour, x, y, text): the last value of each line beside its end, moved apart where two would touch.

    None is moved below the axis, where the numbers of the steps stand.
    """
    lines = sorted(lines, key=lambda line: scale.height(line.points[-1][1]))
    heights: list[float] = []
    for line in lines:
        heights.append(max(scale.height(line.points[-1][1]), heights[-1] + LABEL_GAP if heights else -math.inf))
    lowest = float(HEIGHT - BOTTOM)
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], lowest)
        lowest = heights[place] - LABEL_GAP
    ends = [line.points[-1] for line in lines]
    return [
        (line.colour, scale.across(x, 6), f"{height + 4:.1f}", significant(y))
        for line, (x, y), height in zip(lines, ends, heights, strict=True)
    ]
