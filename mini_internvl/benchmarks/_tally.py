"""Metrics from single results: percentages by group, each with its standard error and its number of items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mini_internvl.benchmarks._files import chosen
from mini_internvl.records import Item, Prediction, Score

Asked = Sequence[tuple[Item, str]]  # items with their answers
Judge = Callable[..., str]


def answers(items: Iterable[Item], predictions: Iterable[Prediction]) -> list[tuple[Item, str]]:
    """Each item with its answer, empty where no prediction names the item; of several the last counts."""
    texts = {prediction.item_id: prediction.text for prediction in predictions}
    return [(item, texts.get(item.id, "")) for item in items]


def empty_answers(asked: Asked) -> dict[str, int]:
    """A note of how many answers are empty."""
    return {"empty": sum(not text.strip() for _, text in asked)}


def mean_error(values: Sequence[float]) -> float:
    """Standard error of a mean; 0 for fewer than two values."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def with_answers(
    protocols: Mapping[str, str],
) -> Callable[[Callable[[Asked, str, Judge | None], Score]], Callable[..., Score]]:
    """Makes a benchmark's ``score`` of a function of the answered items, the protocol's name and the judge."""

    def decorate(function: Callable[[Asked, str, Judge | None], Score]) -> Callable[..., Score]:
        def score(
            items: Iterable[Item],
            predictions: Iterable[Prediction],
            *,
            protocol: str | None = None,
            judge: Judge | None = None,
        ) -> Score:
            return function(answers(items, predictions), chosen("protocol", protocol, protocols), judge)

        score.__doc__ = function.__doc__
        return score

    return decorate


def scorer(
    benchmark: str,
    protocols: Mapping[str, str],
    right: Callable[[Item, str, str], bool],
    *,
    metrics: Callable[[Item], Sequence[str]] = lambda item: ("accuracy",),
    order: Sequence[str] = ("accuracy",),
    notes: Callable[[Asked], Mapping[str, Any]] = empty_answers,
) -> Callable[..., Score]:
    """The ``score`` of a benchmark whose metrics are shares of right answers.

    Args:
        benchmark: its name.
        protocols: its PROTOCOLS.
        right: whether an answer counts, by item, text and protocol.
        metrics: the metrics that an item counts towards.
        order: metrics that come first, also where no item counts towards them.
        notes: what to note about all answers.
    """

    @with_answers(protocols)
    def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
        """Shares of right answers in per cent; no judge is needed."""
        tally = Tally(*order)
        for item, text in asked:
            tally.add(right(item, text, protocol), *metrics(item))
        return tally.score(benchmark, items=len(asked), notes=notes(asked))

    return score


class Tally:
    """Collects results (0 to 1, or any unit) under metric names and makes a Score of them.

    The metrics that it is made with come first, also where they get no results.

    >>> tally = Tally(); tally.add(1.0, "accuracy", "category/maps"); tally.add(0.0, "accuracy")
    >>> tally.score("demo", items=2).values
    {'accuracy': 50.0, 'category/maps': 100.0}
    """

    def __init__(self, *metrics: str) -> None:
        self.results: dict[str, list[float]] = {metric: [] for metric in metrics}

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
