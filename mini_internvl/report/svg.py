"""Small charts as inline SVG that take every colour from the page's style sheet, so that they follow light and dark.

Drawn for a width of about 340 CSS pixels, so that letters keep their size on a phone. Classes name roles (``grid``,
``tick``, ``c1`` ...); nothing here names a colour or a font.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mini_internvl.report.page import significant

WIDTH, HEIGHT = 360, 224
LEFT, RIGHT, TOP, BOTTOM = 44, 48, 28, 40
LABEL_GAP = 13.0
"""Least distance of two value labels, in SVG units."""
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    """(x, y) in order of x, finite; not more than a chart has pixels for."""
    colour: int = 1
    """Role of the line, class ``c1`` (solid) or ``c2`` (dashed, so that colour is not needed)."""
    faint: bool = False
    """Drawn thin behind the others and without a value label: raw values behind their mean."""
    dots: bool = False
    """Marks each point: for values measured now and then."""


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
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    scale = _Scale(xs, ys)
    spoken = "; ".join(describe(line, x_title) for line in drawn if not line.faint)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}. {spoken}")}">'
    ]
    parts += _axes(scale, x_title, y_title)
    for x, name in borders:
        across = scale.across(x)
        parts.append(f'<line class="border" x1="{across:.1f}" x2="{across:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{across + 4:.1f}" y="{TOP + 10}">{escape(name)}</text>')
    for line in sorted(drawn, key=lambda line: not line.faint):
        parts += _line(line, scale)
    parts += _end_labels([line for line in drawn if not line.faint], scale)
    return "".join([*parts, "</svg>"])


def describe(line: Series, x_title: str) -> str:
    """A line in words: "training: from 3.21 to 0.42 at step 450, between 0.4 and 3.3"."""
    values = [value for _, value in line.points]
    first, last, low, high = map(significant, (values[0], values[-1], min(values), max(values)))
    return (
        f"{line.name}: from {first} to {last} at {x_title} {significant(line.points[-1][0])}, between {low} and {high}"
    )


def swatch(line: Series) -> str:
    """A short sample of the line for the legend."""
    dot = f'<circle class="dot c{line.colour}" cx="13" cy="6" r="3"/>' if line.dots else ""
    kind = "line faint" if line.faint else "line"
    stroke = f'<line class="{kind} c{line.colour}" x1="1" x2="25" y1="6" y2="6"/>'
    return f'<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true">{stroke}{dot}</svg>'


def error_bars(values: Sequence[tuple[str, float, float]], end: float) -> str:
    """Bars of (class, value, standard error) from 0 to ``end``, one below the other, each with its error as a whisker.

    An image of numbers that stand beside it; hidden from screen readers.
    """
    height = 7 * len(values) + 5
    parts = [f'<svg class="bars" viewBox="0 0 200 {height}" preserveAspectRatio="none" aria-hidden="true">']
    for place, (role, value, error) in enumerate(values):
        y = 2.5 + 7 * place
        parts.append(f'<rect class="track" x="0" y="{y}" width="200" height="6"/>')
        parts.append(f'<rect class="bar {role}" x="0" y="{y}" width="{200 * _part(value, end):.1f}" height="6"/>')
        if math.isfinite(value) and math.isfinite(error) and error > 0:
            low, high = (200 * _part(value + sign * error, end) for sign in (-1, 1))
            middle = y + 3
            ends = "".join(f"M{x:.1f} {middle - 3.5}V{middle + 3.5}" for x in (low, high))
            parts.append(f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}{ends}"/>')
    return "".join([*parts, "</svg>"])


def _part(value: float, end: float) -> float:
    return min(1.0, max(0.0, value / end)) if end > 0 and math.isfinite(value) else 0.0


class _Scale:
    """Where values lie on the canvas, and the round numbers beside it."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        low, high = min(ys), max(ys)
        if low == high:
            low, high = min(0.0, low), max(0.0, high) or (0.0 if low else 1.0)
        elif 0 <= low < high / 2:
            low = 0.0
        self.y_step, self.y_ticks = _ticks(low, high, 4)
        self.y_low, self.y_high = self.y_ticks[0], self.y_ticks[-1]
        self.x_low, self.x_high = min(xs), max(xs)
        if self.x_low == self.x_high:
            self.x_low, self.x_high = self.x_low - 1, self.x_high + 1
        whole = all(float(x).is_integer() for x in xs)
        self.x_step, ticks = _ticks(self.x_low, self.x_high, 5, least=1.0 if whole else 0.0)
        self.x_ticks = [tick for tick in ticks if self.x_low <= tick <= self.x_high]

    def across(self, x: float) -> float:
        return LEFT + (x - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def down(self, y: float) -> float:
        return TOP + (self.y_high - y) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)


def _ticks(low: float, high: float, count: int, least: float = 0.0) -> tuple[float, list[float]]:
    """A round step of at least ``least`` and its multiples that cover low..high, about ``count`` + 1 of them."""
    rough = max((high - low) / count, least)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return step, [i * step for i in range(first, last + 1)]


def _tick_label(value: float, step: float) -> str:
    return significant(value) if step < 0.001 and abs(value) > step / 2 else f"{value:,.9g}"


def _axes(scale: _Scale, x_title: str, y_title: str) -> list[str]:
    parts = []
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for tick in scale.y_ticks:
        y = scale.down(tick)
        kind = "axis" if tick == scale.y_ticks[0] else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = _tick_label(tick, scale.y_step)
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for tick in scale.x_ticks:
        x = scale.across(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        label = _tick_label(tick, scale.x_step)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{label}</text>')
    parts.append(f'<text class="tick" x="{right}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_title)}</text>')
    parts.append(f'<text class="tick" x="4" y="13">{escape(y_title)}</text>')
    return parts


def _line(line: Series, scale: _Scale) -> list[str]:
    placed = [(scale.across(x), scale.down(y)) for x, y in line.points]
    kind = "line faint" if line.faint else "line"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts = [f'<polyline class="{kind} c{line.colour}" points="{path}"/>']
    if line.dots or len(placed) == 1:
        for (x, y), (_, value) in zip(placed, line.points, strict=True):
            circle = f'<circle class="dot c{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
            parts.append(f"{circle}<title>{significant(value)}</title></circle>")
    return parts


def _end_labels(lines: Sequence[Series], scale: _Scale) -> list[str]:
    """The last value of each line beside its end, moved apart where two would touch."""
    parts, height = [], -math.inf
    for line in sorted(lines, key=lambda line: scale.down(line.points[-1][1])):
        x, y = line.points[-1]
        height = max(scale.down(y), height + LABEL_GAP)
        place = f'x="{scale.across(x) + 6:.1f}" y="{height + 4:.1f}"'
        parts.append(f'<text class="value c{line.colour}" {place}>{significant(y)}</text>')
    return parts
