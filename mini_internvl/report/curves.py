"""The curves of a training log as charts, and the same training in a few metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mini_internvl.report import svg

LOGGED = {"stage", "step", "loss", "lr", "grad_norm", "tokens_per_s", "held_out_loss", "score"}
"""Keys of the log with a meaning of their own; every other number is a measurement with a chart of its own."""
MEANS = 25
"""The training loss is smoothed over one part in so many of its steps."""

Metrics = Sequence[Mapping[str, Any]]


def charts(metrics: Metrics) -> list[dict[str, Any]]:
    """Loss, the domain's measurements while training, learning rate; steps are counted over all stages.

    Returns:
        ``title``, ``svg`` and ``legend`` ((sample, name) pairs, empty for a single line) of each chart with data.
    """
    _, borders = _steps(metrics)
    drawn = []
    for title, y_title, lines in _wanted(metrics):
        lines = [line for line in lines if line.finite()]
        image = svg.line_chart(title=title, x_title="step", y_title=y_title, series=lines, borders=borders)
        if image:
            legend = [(svg.swatch(line), line.name) for line in lines] if len(lines) > 1 else []
            drawn.append({"title": title, "svg": image, "legend": legend})
    return drawn


def _wanted(metrics: Metrics) -> Iterator[tuple[str, str, list[svg.Series]]]:
    """Title, name of the upright axis and lines of each chart, some perhaps without points."""
    loss = _points(metrics, "loss")
    window = max(1, len(loss) // MEANS)
    held_out = svg.Series(name="held out", points=_points(metrics, "held_out_loss"), colour=2, dots=True)
    if window > 1:
        raw = svg.Series(name="training, each step", points=loss, faint=True)
        mean = svg.Series(name=f"training, mean of {window} steps", points=_running_mean(loss, window))
        yield "Loss", "loss", [raw, mean, held_out]
    else:
        yield "Loss", "loss", [svg.Series(name="training", points=loss), held_out]
    score = svg.Series(name="score", points=_points(metrics, "score"), dots=True)
    told = [held_out.points, *(_points(metrics, key) for key in _measured(metrics))]
    if not any(_same(score.points, points) for points in told):
        yield "Validation: domain score", "score", [score]
    for key, name in _measured(metrics).items():
        values = svg.Series(name=name, points=_points(metrics, key), dots=True)
        yield f"Validation: {name}", name.rpartition(" ")[2], [values]
    yield "Learning rate", "learning rate", [svg.Series(name="learning rate", points=_points(metrics, "lr"))]


def _measured(metrics: Metrics) -> dict[str, str]:
    """Logged keys such as "bddx_text description/CIDEr" -> "description CIDEr", whole where that is not unique."""
    keys = [key for key in dict.fromkeys(key for row in metrics for key in row) if key not in LOGGED]
    ends = [key.partition(" ")[2] or key for key in keys]
    names = [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
    return {key: name.replace("_", " ").replace("/", " ") for key, name in zip(keys, names, strict=True)}


def metrics(metrics: Metrics) -> list[tuple[str, str]]:
    """Training in a few metrics, (name, text)."""
    if not metrics:
        return []
    facts = [("steps", f"{_steps(metrics)[0][-1]:,.0f}")]
    for key, label in (("loss", "training loss"), ("held_out_loss", "held-out loss")):
        values = [value for _, value in _points(metrics, key)]
        if values:
            facts.append((label, f"{svg.number(values[0])} → {svg.number(values[-1])}"))
    if scores := _points(metrics, "score"):
        step, score = max(scores, key=lambda point: (point[1], point[0]))
        facts.append(("best score", f"{svg.number(score)} at step {step:,.0f}"))
    if rates := _points(metrics, "lr"):
        facts.append(("peak learning rate", svg.number(max(rate for _, rate in rates))))
    if paces := sorted(pace for _, pace in _points(metrics, "tokens_per_s")):
        facts.append(("tokens/s (median)", f"{paces[len(paces) // 2]:,.0f}"))
    return facts


def _points(metrics: Metrics, key: str) -> list[svg.Point]:
    """(step, value) where the log has a finite number under a key."""
    steps, _ = _steps(metrics)
    return [(step, float(row[key])) for step, row in zip(steps, metrics, strict=True) if _is_value(row.get(key))]


def _same(some: Sequence[svg.Point], others: Sequence[svg.Point]) -> bool:
    """Whether two lines are equal but for their sign: a score that only repeats another measurement."""
    return [(x, abs(y)) for x, y in some] == [(x, abs(y)) for x, y in others]


def _is_value(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _steps(metrics: Metrics) -> tuple[list[float], list[tuple[float, str]]]:
    """The step of each row counted over all stages, and where each stage but the first begins."""
    steps: list[float] = []
    borders: list[tuple[float, str]] = []
    before = 0.0
    for i, row in enumerate(metrics):
        if i and row.get("stage") != metrics[i - 1].get("stage"):
            before = steps[-1]
            borders.append((before, str(row.get("stage", ""))))
        steps.append(before + row["step"])
    return steps, borders


def _running_mean(points: Sequence[svg.Point], window: int) -> list[svg.Point]:
    """At each point the mean of it and of up to ``window`` - 1 before it."""
    smooth = []
    for i, (x, _) in enumerate(points):
        part = points[max(0, i + 1 - window) : i + 1]
        smooth.append((x, sum(y for _, y in part) / len(part)))
    return smooth
