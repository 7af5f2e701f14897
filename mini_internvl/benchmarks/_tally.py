"""Metrics from single results: percentages by group, each with its standard error and its number of items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mini_internvl.benchmarks._files import chosen
from mini_internvl.records import Item, Prediction, Score


def answers(items: Iterable[Item], predictions: Iterable[Prediction]) -> dict[str, str]:
    """Item id -> answer text, empty where no prediction names the item; of several the last counts."""
    texts = {prediction.item_id: prediction.text for prediction in predictions}
    return {item.id: texts.get(item.id, "") for item in items}


def empty_answers(texts: Sequence[str]) -> dict[str, int]:
    """A note of how many answers are empty."""
    return {"empty": sum(not text.strip() for text in texts)}


def mean_error(values: Sequence[float]) -> float:
    """Standard error of a mean; 0 for fewer than two values."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def scorer(
    benchmark: str,
    protocols: Mapping[str, str],
    right: Callable[[Item, str, str], bool],
    *,
    metrics: Callable[[Item], Sequence[str]] = lambda item: ("accuracy",),
    order: Sequence[str] = ("accuracy",),
    notes: Callable[[Sequence[str]], Mapping[str, Any]] = empty_answers,
) -> Callable[..., Score]:
    """The ``score`` of a benchmark whose metrics are shares of right answers.

    Args:
        benchmark: its name.
        protocols: its PROTOCOLS.
        right: whether an answer counts, by item, text and protocol.
        metrics: the metrics that an item counts towards.
        order: metrics that come first, also where no item counts towards them.
        notes: what to note about the texts of all answers.
    """

    def score(
        items: Iterable[Item], predictions: Iterable[Prediction], *, protocol: str | None = None, judge: Any = None
    ) -> Score:
        """Shares of right answers in per cent; no judge is needed."""
        kind = chosen("protocol", protocol, protocols)
        asked = list(items)
        texts = answers(asked, predictions)
        tally = Tally()
        tally.results = {metric: [] for metric in order}
        for item in asked:
            tally.add(right(item, texts[item.id], kind), *metrics(item))
        return tally.score(benchmark, items=len(asked), notes=notes(list(texts.values())))

    return score


class Tally:
    """Collects results (0 to 1, or any unit) under metric names and makes a Score of them.

    >>> tally = Tally(); tally.add(1.0, "accuracy", "category/maps"); tally.add(0.0, "accuracy")
    >>> tally.score("demo", items=2).values
    {'accuracy': 50.0, 'category/maps': 100.0}
    """

    def __init__(self) -> None:
        self.results: dict[str, list[float]] = {}

    def add(self, result: float, *metrics: str) -> None:
        """Count one result towards each of the metrics; metrics keep the order in which they first came."""
        for metric in metrics:
            self.results.setdefault(metric, []).append(float(result))

    def value(self, metric: str, scale: float = 100.0) -> float:
        """The mean of a metric's results; 0 without any."""
        results = self.results.get(metric, [])
        return scale * math.fsum(results) / len(results) if results else 0.0

    def error(self, metric: str, scale: float = 100.0) -> float:
        """The standard error of that mean."""
        return scale * mean_error(self.results.get(metric, []))

    def score(
        self,
        benchmark: str,
        *,
        items: int,
        scale: float = 100.0,
        notes: Mapping[str, Any] | None = None,
        partial: str = "",
    ) -> Score:
        """All metrics as a Score."""
        return Score(
            benchmark=benchmark,
            values={metric: self.value(metric, scale) for metric in self.results},
            errors={metric: self.error(metric, scale) for metric in self.results},
            counts={metric: len(results) for metric, results in self.results.items()},
            items=items,
            notes=dict(notes or {}),
            partial=partial,
        )
