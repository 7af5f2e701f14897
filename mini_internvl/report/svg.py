"""Small line charts as inline SVG that takes its colours from the page, so that it follows light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
Point = tuple[float, float]


def line_chart(title: str, x_title: str, series: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """One chart; each series is (name, points) and gets the page's colours 1, 2, ...

    A long series is thinned to about 300 points. Values that are not finite are left out.
    """
    cleaned = [(name, _thin([p for p in points if all(map(math.isfinite, p))])) for name, points in series]
    cleaned = [(name, points) for name, points in cleaned if points]
    if not cleaned:
        return ""
    xs = [x for _, points in cleaned for x, _ in points]
    ys = [y for _, points in cleaned for _, y in points]
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
    x_low, x_high = min(xs[0], min(xs), x_ticks[0]), max(max(xs), x_ticks[-1])
    y_low, y_high = min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1])

    def place(x: float, y: float) -> str:
        across = LEFT + (x - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT)
        down = TOP + (y_high - y) / ((y_high - y_low) or 1) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        x, y = place(x_low, tick).split(",")
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{float(x) - 6:.1f}" y="{float(y) + 4:.1f}" text-anchor="end">{_label(tick)}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_low).split(",")
        parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_label(tick)}</text>')
    parts.append(f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>')
    for number, (name, points) in enumerate(cleaned, 1):
        path = " ".join(place(x, y) for x, y in points)
        parts.append(f'<polyline class="line c{number}" points="{path}"><title>{escape(name)}</title></polyline>')
        if len(points) <= 12:
            for x, y in points:
                across, down = place(x, y).split(",")
                parts.append(f'<circle class="dot c{number}" cx="{across}" cy="{down}" r="3"><title>{_label(y)}</title></circle>')
    return "".join([*parts, "</svg>"])


def _thin(points: Sequence[Point], most: int = 300) -> list[Point]:
    step = max(1, len(points) // most)
    thinned = list(points[::step])
    return thinned if not points or thinned[-1] == points[-1] else [*thinned, points[-1]]


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that cover the range."""
    span = (high - low) or abs(high) or 1.0
    rough = span / count
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
    first = math.floor(low / step) * step
    return [first + i * step for i in range(count + 3) if first + (i - 1) * step < high or i == 0]


def _label(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.0e}"
    return f"{value:,.2f}".rstrip("0").rstrip(".")
