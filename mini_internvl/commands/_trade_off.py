"""What is learned against what is forgotten at several settings: a table and a picture, shared by the sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_internvl import terminal
from mini_internvl.adapt import geometric_mean
from mini_internvl.report.svg import Mark, trade_off

RULE = (
    "the largest balance: the geometric mean of the domain's scores and of the general ones, as shares of their "
    "largest values"
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting: primary values by benchmark, and the geometric means of their shares, in percent."""

    setting: float
    values: Mapping[str, float]
    domain: float
    general: float | None
    name: str = ""  # of one that has no setting

    @property
    def text(self) -> str:
        return self.name or f"{self.setting:g}"

    @property
    def balance(self) -> float:
        return self.domain if self.general is None else math.sqrt(self.domain * self.general)

    def facts(self, setting: str) -> dict[str, Any]:
        """As a file holds it."""
        given = {"name": self.name} if self.name else {setting: self.setting}
        means = {"domain": self.domain, "general": self.general, "balance": self.balance}
        return {**given, "values": dict(self.values), **means}


def mean(values: Mapping[str, float], largest: Mapping[str, float]) -> float | None:
    """Of the primary values of the benchmarks in ``largest``, as shares of their largest values, in percent."""
    return 100 * geometric_mean(values[name] / most for name, most in largest.items()) if largest else None


def best_of(points: Sequence[Point]) -> Point:
    """By the rule; of equal ones that with the smallest setting."""
    return max((point for point in points if not point.name), key=lambda point: (point.balance, -point.setting))


def picture(points: Sequence[Point], best: Point, *, title: str, setting: str) -> str:
    """Domain against general ability, a mark for each setting; without general benchmarks, domain against setting."""
    with_general = best.general is not None
    marks = [
        Mark(
            x=point.setting if point.general is None else point.general,
            y=point.domain,
            text=point.text,
            chosen=point is best,
        )
        for point in points
    ]
    x_title = "general ability, % of the largest values" if with_general else setting
    return trade_off(title=title, x_title=x_title, y_title="domain, %", marks=marks)


def print_table(
    title: str, setting: str, points: Sequence[Point], best: Point, metrics: Mapping[str, str]
) -> None:  # fmt: skip
    """A line for each setting, a column for each benchmark (name -> primary metric)."""
    headers = [setting, *(f"{name} {metric}" for name, metric in metrics.items()), "domain", "general", "balance", ""]
    rows = []
    for point in points:
        numbers = [*(point.values[name] for name in metrics), point.domain, point.general, point.balance]
        texts = ["-" if value is None else f"{value:.2f}" for value in numbers]
        rows.append((point.text, *texts, "best" if point is best else ""))
    terminal.table(title, headers, rows)
