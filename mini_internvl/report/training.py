"""A training log as charts and a few numbers; a million steps are read once and drawn with a few hundred points.

The log only grows: a run that was stopped writes the steps after its last saved state again. The later lines count.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_internvl.report import svg
from mini_internvl.report.page import significant, words
from mini_internvl.train.log import read_lines

LOGGED = {
    *("stage", "step", "loss", "lr", "grad_norm", "tokens_per_s", "held_out_loss", "score"),
    *("samples", "tokens", "supervised", "tiles", "unusable", "padding"),
}
"""Keys of the log with a meaning of their own; every other number is a measurement with a chart of its own."""
SMOOTHED_PARTS = 25  # the training loss is smoothed over one part in so many of its steps
CHART_POINTS = 240  # points of one line, about as many as a chart has pixels for
LARGEST = 1e300  # values beyond this, infinite ones and NaN are no measurement


@dataclass(kw_only=True)
class Column:
    """The finite values under one key of the log, by ascending steps counted over all stages."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.steps)

    def points(self) -> list[svg.Point]:
        """At most about twice CHART_POINTS of them: the lowest and the highest of each stretch, so that peaks show."""
        stretch = max(1, math.ceil(len(self) / CHART_POINTS))
        kept = []
        for begin in range(0, len(self), stretch):
            places = range(begin, min(begin + stretch, len(self)))
            kept += sorted({min(places, key=self.values.__getitem__), max(places, key=self.values.__getitem__)})
        places_kept = sorted({0, *kept, len(self) - 1}) if len(self) else []
        return [(self.steps[place], self.values[place]) for place in places_kept]

    def means(self, window: int) -> list[svg.Point]:
        """At CHART_POINTS places the mean of the value there and of up to ``window`` - 1 before it."""
        stretch = max(1, math.ceil(len(self) / CHART_POINTS))
        places = sorted({*range(0, len(self), stretch), len(self) - 1}) if len(self) else []
        parts = {place: self.values[max(0, place + 1 - window) : place + 1] for place in places}
        return [(self.steps[place], math.fsum(part) / len(part)) for place, part in parts.items()]


@dataclass(kw_only=True)
class Log:
    """A training log by keys; ``step`` has every step, ``last`` is the last one."""

    columns: dict[str, Column] = field(default_factory=dict)
    borders: list[tuple[float, str]] = field(default_factory=list)  # (step, stage) where each stage begins
    unreadable: int = 0
    last: float = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a line; what stands in the log at and after its step is written anew."""
        last, stage = self.last, str(row.get("stage", ""))
        before = next((begin for begin, name in reversed(self.borders) if name == stage), None)
        if before is None:
            before = last
            self.borders.append((before, stage))
        step = before + row["step"]
        if step <= last:
            self.borders = [border for border in self.borders if border[0] < step]
            for column in self.columns.values():
                place = bisect_left(column.steps, step)
                del column.steps[place:], column.values[place:]
        self.last = step
        for key, value in row.items():
            if type(value) in (int, float) and abs(value) < LARGEST:
                column = self.columns.get(key) or self.columns.setdefault(key, Column())
                column.steps.append(step)
                column.values.append(value)

    def get(self, key: str) -> Column:
        return self.columns.get(key, Column())


def read_log(path: Path) -> Log:
    """Read a log; lines that are no step (torn by a kill) are counted and left out, ValueError where all are."""
    log = Log()
    for row in read_lines(path):
        if row is None:
            log.unreadable += 1
        elif 0 < row["step"] < LARGEST:
            log.add(row)
    if log.unreadable and not log.columns:
        raise ValueError(f'{path}:1: no line of a training log; each must be an object with a number "step"')
    return log


def charts(log: Log, counts: Mapping[str, int], speed: Log | None = None) -> list[dict[str, Any]]:
    """Title, note, svg and legend (its lines, if several) of each chart: loss, measurements, rates, speed.

    Steps are counted over all stages. ``counts`` is measurement -> number of validation items, where it is known;
    ``speed`` the log of what depends on the clock.
    """
    drawn = []
    for title, y_title, note, lines in (*_wanted(log, counts), *_rates(log), *_speeds(speed or log)):
        lines = [line for line in lines if line.points]
        image = svg.line_chart(title=title, x_title="step", y_title=y_title, series=lines, borders=log.borders[1:])
        if image:
            drawn.append({"title": title, "note": note, "svg": image, "legend": lines if len(lines) > 1 else []})
    return drawn


def _wanted(log: Log, counts: Mapping[str, int]) -> Iterator[tuple[str, str, str, list[svg.Series]]]:
    """Title, name of the upright axis, note and lines of each chart, some perhaps without points."""
    loss, held_out, measured = log.get("loss"), log.get("held_out_loss"), [k for k in log.columns if k not in LOGGED]
    lines = [
        *_smoothed("training", loss),
        svg.Series(name="held out", points=held_out.points(), colour=2, dots=True),
    ]
    yield "Loss", "loss", "Held out: the same loss on samples that training never sees." if held_out else "", lines
    if len(measured) > 1:  # the score of a single measurement only repeats it
        note = "Picks the best weights: the geometric mean of the primary metrics, as shares of their largest values."
        yield "Validation score", "score", note, [svg.Series(name="score", points=log.get("score").points(), dots=True)]
    for key in measured:
        name = words(key).replace("/", " ")  # "bddx_text description/CIDEr"
        note = f"{counts[key]:,} validation items." if key in counts else "On validation items, not on the test split."
        title, note = (f"Validation: {name}", note) if " " in key else (name.capitalize(), "")
        yield title, name.rpartition(" ")[2], note, [svg.Series(name=name, points=log.get(key).points(), dots=True)]
    yield "Learning rate", "learning rate", "", [svg.Series(name="learning rate", points=log.get("lr").points())]


def _rates(log: Log) -> Iterator[tuple[str, str, str, list[svg.Series]]]:
    """As :func:`_wanted`: the gradient's norm, and what of the batches is padding."""
    note = "Before clipping; a peak is a step with unusual samples, a steady rise a learning rate that is too high."
    yield "Gradient norm", "norm", note, _smoothed("gradient norm", log.get("grad_norm"))
    padding = log.get("padding")
    if any(padding.values):  # packed rows have none
        yield "Padding", "% of places", "", _smoothed("padding", padding, 100)


def _speeds(log: Log) -> Iterator[tuple[str, str, str, list[svg.Series]]]:
    """As :func:`_wanted`, of a log of speeds."""
    yield "Tokens per second", "tokens/s", "", _smoothed("tokens/s", log.get("tokens_per_s"))
    if any(log.get("tiles_per_s").values):
        yield "Tiles per second", "tiles/s", "", _smoothed("tiles/s", log.get("tiles_per_s"))
    note = "Share of a step's time in which it waits for samples; more worker processes lower it (--workers)."
    yield "Waiting for data", "% of time", note, _smoothed("data wait", log.get("data_wait"), 100)
    note = "Share of the device's peak arithmetic that the model's own operations use."
    yield "Model FLOPs utilisation (MFU)", "%", note, _smoothed("MFU", log.get("mfu"), 100)


def _smoothed(name: str, column: Column, factor: float = 1) -> list[svg.Series]:
    """A noisy column as its mean over a stretch of steps, with the steps themselves faint behind it."""
    window = max(1, len(column) // SMOOTHED_PARTS)
    single, means = (
        [(step, factor * value) for step, value in points]
        for points in (column.points() if window > 1 else (), column.means(window))
    )
    bold = f"{name}, mean of {window:,} steps" if window > 1 else name
    return [svg.Series(name=f"{name}, each step", points=single, faint=True), svg.Series(name=bold, points=means)]


def summary(log: Log, speed: Log | None = None) -> list[tuple[str, str]]:
    """Training in a few numbers, (name, text)."""
    facts = [("steps", f"{log.get('step').steps[-1]:,.0f}")] if log.columns else []
    loss = log.get("loss")
    for name, points in (
        ("training loss", loss.means(max(1, len(loss) // SMOOTHED_PARTS))),
        ("held-out loss", log.get("held_out_loss").points()),
    ):
        if points:
            facts.append((name, f"{significant(points[0][1])} → {significant(points[-1][1])}"))
    for name, key, factor in (("tokens/s", "tokens_per_s", 1), ("waiting for data, %", "data_wait", 100)):
        if values := sorted((speed or log).get(key).values):
            facts.append((f"{name} (median)", significant(factor * values[len(values) // 2])))
    return facts
