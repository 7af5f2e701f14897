"""Charts drawn with PIL on small canvases: bars, horizontal bars, lines, pies and tables, letters of 8 pixels and up.

Each function draws one chart and leaves what stands where in the pen; what it cannot fit (labels wider than their bar)
raises ``TooNarrow`` so that the caller chooses another chart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from ..records import PatchAnnotation
from . import canvas, fonts

Font = ImageFont.FreeTypeFont


class TooNarrow(Exception):
    """The labels do not fit this chart at a readable size."""


class Pen(ImageDraw.ImageDraw):
    """Draws into an image and notes what stands where."""

    def __init__(self, image: Image.Image) -> None:
        super().__init__(image)
        self.image, self.size = image, image.size
        self.patch_annotations: list[PatchAnnotation] = []

    def annotate(self, text: str, box: tuple[float, float, float, float], colour: str) -> None:
        """Note a part of the chart; ``box`` in pixels."""
        width, height = self.size
        shares = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        self.patch_annotations.append(PatchAnnotation(text=text, box=shares, colour=colour))


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Everything a chart shows.

    ``shown`` are the values as text, in the chart where ``printed``; ``colours`` are the colour names of its parts.
    ``path`` is the font file and ``tall`` the wanted height of digits in pixels.
    """

    title: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    shown: tuple[str, ...]
    colours: tuple[str, ...]
    printed: bool
    ink: canvas.RGB
    paper: canvas.RGB
    path: str
    tall: int

    def fill(self, i: int) -> canvas.RGB:
        """The colour of part ``i``."""
        return canvas.COLOURS[self.colours[i]]

    def faint(self, parts: int) -> tuple[int, ...]:
        """One part of ink in so many parts of paper."""
        return tuple(((parts - 1) * p + i) // parts for p, i in zip(self.paper, self.ink, strict=True))


@lru_cache(maxsize=256)
def sized(path: str, tall: int) -> Font:
    """The font at the size whose digits are about ``tall`` pixels high."""
    size = round(tall * 1.4)
    for _ in range(3):
        font = fonts.load(path, size)
        box = canvas.size_of(font, "08")
        high = box[3] - box[1]
        if high == tall:
            break
        size += tall - high
    return fonts.load(path, max(size, 8))


def _width(font: Font, text: str) -> int:
    box = canvas.size_of(font, text)
    return box[2] - box[0]


def _widest(font: Font, texts: Iterable[str]) -> int:
    return max(_width(font, text) for text in texts)


def fitted(path: str, texts: tuple[str, ...], width: float, tall: int, least: int = 8) -> Font:
    """The font at the largest digit height from ``tall`` down whose texts fit the width; TooNarrow otherwise."""
    for height in range(tall, least - 1, -1):
        font = sized(path, height)
        if _widest(font, texts) <= width:
            return font
    raise TooNarrow


def _write(pen: Pen, x: float, y: float, text: str, font: Font, fill: canvas.RGB,
           anchor: str = "mm") -> None:  # fmt: skip
    """Text with its ink centred (or at the left/right edge) on x and its digits' middle on y."""
    left, _, right, _ = canvas.size_of(font, text)
    _, top, _, bottom = canvas.size_of(font, "08")
    x -= {"l": left, "m": (left + right) / 2, "r": right}[anchor[0]]
    at = (round(x), round(y - (top + bottom) / 2))
    pen.text(at, text, font=font, fill=fill)
    pen.patch_annotations += canvas.annotate_text(font, text, at, pen.size, line=None)


def _title(pen: Pen, plot: Plot, width: int) -> int:
    """Draws the title; returns the first free row."""
    font = fitted(plot.path, (plot.title,), width - 8, plot.tall + 2, 7)
    _write(pen, width / 2, plot.tall + 1, plot.title, font, plot.ink)
    return 2 * plot.tall + 4


def _scale(plot: Plot, from_zero: bool) -> tuple[float, float, float]:
    """Lowest and highest axis value and the step between ticks, round numbers."""
    low, high = min(plot.values), max(plot.values)
    if from_zero and low >= 0:
        low = 0
    span = (high - low) or abs(high) or 1.0
    raw = span / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    bottom, top = math.floor(low / step) * step, math.ceil(high / step - 1e-9) * step
    return bottom, max(top, bottom + step), step


def _ticks(low: float, high: float, step: float) -> list[tuple[float, str]]:
    """Tick values with their text."""
    count = round((high - low) / step)
    values = [low + i * step for i in range(count + 1)]
    decimals = len(f"{step:.9f}".rstrip("0").partition(".")[2])
    return [(v, f"{v + 0.0:.{decimals}f}") for v in values]


class _Columns:
    """A vertical chart without its bars or points: title, axes and ticks drawn, a column for each label."""

    def __init__(self, rng: random.Random, pen: Pen, plot: Plot, always_from_zero: bool) -> None:
        self.pen, self.plot = pen, plot
        width, height = pen.size
        slot = (width - (10 if plot.printed else 34)) / len(plot.labels)
        self.font = fitted(plot.path, plot.labels, slot - 5, plot.tall)
        self.number = fitted(plot.path, plot.shown, slot - 3, plot.tall)
        from_zero = always_from_zero or rng.random() < 0.3
        top = _title(pen, plot, width) + (plot.tall + 5 if plot.printed else 4)
        self.bottom = height - plot.tall - 9
        self.low, high, step = _scale(plot, from_zero)
        self.span, self.height = high - self.low, self.bottom - top
        self.left = 6.0
        if not plot.printed or rng.random() < 0.4:
            ticks = _ticks(self.low, high, step)
            small = sized(plot.path, 7)
            self.left = 8 + _widest(small, (text for _, text in ticks))
            for value, text in ticks:
                pen.line((self.left, self.y(value), width - 4, self.y(value)), fill=plot.faint(4))
                _write(pen, self.left - 3, self.y(value), text, small, plot.ink, "rm")
        pen.line((self.left, self.bottom, width - 4, self.bottom), fill=plot.ink)
        if rng.random() < 0.6:
            pen.line((self.left, top, self.left, self.bottom), fill=plot.ink)
        self.slot = (width - 4.0 - self.left) / len(plot.labels)
        if _widest(self.font, plot.labels) > self.slot - 2 or _widest(self.number, plot.shown) > self.slot:
            raise TooNarrow

    def x(self, i: float) -> float:
        """Left edge of column ``i``."""
        return self.left + i * self.slot

    def y(self, value: float) -> float:
        """Row of a value on the axis."""
        return self.bottom - (value - self.low) / self.span * self.height

    def label(self, i: int, middle: float) -> None:
        """Write the label of column ``i`` below it."""
        plot = self.plot
        _write(self.pen, middle, self.bottom + plot.tall / 2 + 4, plot.labels[i], self.font, plot.ink)


def bars(rng: random.Random, pen: Pen, plot: Plot) -> None:
    """Vertical bars from zero with labels below."""
    columns = _Columns(rng, pen, plot, True)
    slot = columns.slot
    gap = slot * rng.uniform(0.1, 0.25)
    zero = columns.y(0) if columns.low < 0 else columns.bottom
    edge = plot.ink if rng.random() < 0.3 else None
    for i, value in enumerate(plot.values):
        x, y = columns.x(i), columns.y(value)
        bar = (round(x + gap), round(min(y, zero)), round(x + slot - gap), round(max(y, zero)))
        pen.rectangle(bar, fill=plot.fill(i), outline=edge)
        pen.annotate("bar", bar, plot.colours[i])
        columns.label(i, x + slot / 2)
        if plot.printed:
            _write(pen, x + slot / 2, min(y, zero) - plot.tall / 2 - 3, plot.shown[i], columns.number, plot.ink)


def rows(rng: random.Random, pen: Pen, plot: Plot) -> None:
    """Horizontal bars with labels on the left and values at their ends."""
    width, height = pen.size
    if min(plot.values) < 0:
        raise TooNarrow
    top, bottom = _title(pen, plot, width) + 2, height - (4 if plot.printed else plot.tall + 8)
    slot = (bottom - top) / len(plot.labels)
    font = fitted(plot.path, plot.labels, width * 0.36, min(plot.tall, int(slot * 0.7)), 7)
    left = 8 + _widest(font, plot.labels)
    number = sized(plot.path, min(plot.tall, int(slot * 0.7)))
    room = width - left - 6 - (_widest(number, plot.shown) + 4 if plot.printed else 6)
    low, high, step = _scale(plot, True)
    if plot.printed:
        high = max(plot.values) or 1.0
    else:
        small = sized(plot.path, 7)
        ticks = _ticks(low, high, step)
        ticks = ticks[::2] if sum(_width(small, t) + 6 for _, t in ticks) > room else ticks
        for value, text in ticks:
            x = left + value / high * room
            pen.line((x, top, x, bottom), fill=plot.faint(4))
            _write(pen, x, bottom + plot.tall / 2 + 3, text, small, plot.ink)
    gap = slot * rng.uniform(0.12, 0.25)
    for i, value in enumerate(plot.values):
        y, x = top + i * slot, left + value / high * room
        bar = (left, round(y + gap), max(left + 1, round(x)), round(y + slot - gap))
        pen.rectangle(bar, fill=plot.fill(i))
        pen.annotate("bar", bar, plot.colours[i])
        _write(pen, left - 4, y + slot / 2, plot.labels[i], font, plot.ink, "rm")
        if plot.printed:
            _write(pen, x + 4, y + slot / 2, plot.shown[i], number, plot.ink, "lm")
    pen.line((left, top, left, bottom), fill=plot.ink)


def line(rng: random.Random, pen: Pen, plot: Plot) -> None:
    """Points joined by a line; values above the points."""
    columns = _Columns(rng, pen, plot, False)
    points = [(columns.x(i + 0.5), columns.y(value)) for i, value in enumerate(plot.values)]
    ys = [points[0][1], *(y for _, y in points), points[-1][1]]
    colour = plot.fill(0)
    pen.line(points, fill=colour, width=rng.choice((2, 2, 3)), joint="curve")
    radius = rng.choice((3, 3, 4))
    for i, (x, y) in enumerate(points):
        point = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(point, fill=colour)
        pen.annotate("point", point, plot.colours[0])
        columns.label(i, x)
    for i, (x, y) in enumerate(points if plot.printed else []):
        valley = ys[i] <= y >= ys[i + 2] and y + plot.tall + 8 < columns.bottom
        middle = y + plot.tall / 2 + 6 if valley else y - plot.tall / 2 - 6
        half = _width(columns.number, plot.shown[i]) / 2 + 1
        pen.rectangle((x - half, middle - plot.tall / 2, x + half, middle + plot.tall / 2), fill=plot.paper)
        _write(pen, x, middle, plot.shown[i], columns.number, plot.ink)


def pie(rng: random.Random, pen: Pen, plot: Plot) -> None:
    """Slices with values on them and a legend of names."""
    width, height = pen.size
    total = sum(plot.values)
    if min(plot.values) / total < 0.08 or len(plot.values) > 5:
        raise TooNarrow
    top = _title(pen, plot, width) + 2
    count = len(plot.labels)
    if width > height * 1.2:
        diameter = min(height - top - 6, int(width * 0.58))
        font = fitted(plot.path, plot.labels, width - diameter - 34, plot.tall)
        legend = [(diameter + 16.0, top + (i + 0.5) * min(26, (height - top) / count) + 4) for i in range(count)]
    else:
        across = 2 if count <= 4 else 3
        lines = math.ceil(count / across)
        diameter = height - top - lines * (plot.tall + 7) - 6
        font = fitted(plot.path, plot.labels, width / across - 22, plot.tall, 7)
        legend = [(6 + (i % across) * width / across,
                   height - (lines - i // across - 0.5) * (plot.tall + 7)) for i in range(count)]  # fmt: skip
    number = sized(plot.path, plot.tall)
    box_left = 6 if width > height * 1.2 else (width - diameter) // 2
    middle = (box_left + diameter / 2, top + diameter / 2)
    angle = rng.uniform(0, 360)
    big = Image.new("RGB", (2 * diameter, 2 * diameter), plot.paper)
    big_pen = ImageDraw.Draw(big)
    spots = []
    for i, value in enumerate(plot.values):
        extent = 360 * value / total
        big_pen.pieslice((0, 0, 2 * diameter - 1, 2 * diameter - 1), angle, angle + extent,
                         fill=plot.fill(i), outline=plot.paper, width=3)  # fmt: skip
        turn = math.radians(angle + extent / 2)
        spots.append((middle[0] + math.cos(turn) * diameter * 0.33, middle[1] + math.sin(turn) * diameter * 0.33))
        angle += extent
    pen.image.paste(big.reduce(2), (int(box_left), int(top)))
    for i, (x, y) in enumerate(spots):
        if plot.printed:
            light = canvas.luminance(plot.fill(i)) < 140
            _write(pen, x, y, plot.shown[i], number, (255, 255, 255) if light else (0, 0, 0))
        lx, ly = legend[i]
        pen.rectangle((lx, ly - 4, lx + 9, ly + 5), fill=plot.fill(i))
        pen.annotate("slice", (x - diameter / 8, y - diameter / 8, x + diameter / 8, y + diameter / 8), plot.colours[i])
        _write(pen, lx + 14, ly, plot.labels[i], font, plot.ink, "lm")


def table(rng: random.Random, pen: Pen, plot: Plot) -> None:
    """Two columns, labels and values, with rules or stripes."""
    width, height = pen.size
    top = _title(pen, plot, width) + 2
    slot = min(34.0, (height - top - 4) / len(plot.labels))
    tall = min(plot.tall + 2, int(slot * 0.6))
    font = fitted(plot.path, (*plot.labels, *plot.shown), width * 0.44, tall)
    split = width * rng.uniform(0.5, 0.56)
    striped = rng.random() < 0.5
    align = rng.choice(("lm", "rm"))
    for i, label in enumerate(plot.labels):
        y = top + i * slot
        if striped and i % 2 == 0:
            pen.rectangle((4, y, width - 5, y + slot), fill=plot.faint(8))
        elif not striped:
            pen.line((4, y, width - 5, y), fill=plot.ink)
        _write(pen, 9, y + slot / 2, label, font, plot.ink, "lm")
        _write(pen, split + 6 if align == "lm" else width - 10, y + slot / 2, plot.shown[i], font, plot.ink, align)
    bottom = top + slot * len(plot.labels)
    pen.rectangle((4, top, width - 5, bottom), outline=plot.ink)
    if rng.random() < 0.7:
        pen.line((split, top, split, bottom), fill=plot.ink)
