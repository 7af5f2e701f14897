"""Reads the folder of an evaluation: ``BENCHMARK/score.json`` and ``BENCHMARK/predictions.jsonl``, with defaults.

Only the benchmark's name and its values are needed. Everything else may be absent and is then empty, so that the page
simply says less; a folder that was scored without keeping answers gives metrics and no examples.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mini_internvl import plugins
from mini_internvl.report.checked import Malformed, get, is_number, read_object
from mini_internvl.report.labels import Label, labels

SCORE = "score.json"
ANSWERS = "predictions.jsonl"
_FIX = "evaluate the benchmark again"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of the answers."""

    id: str
    """The item's id."""
    question: str
    """The question as asked, without images."""
    text: str
    """What the model answered."""
    right: bool | None
    """The benchmark's check of this answer; None where it has none."""
    reference: Any
    """The item's truth: JSON data."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One benchmark of a run."""

    folder: Path
    """Where its files lie."""
    benchmark: str
    """Name of the benchmark file."""
    title: str
    """Name in print."""
    primary_metric: str
    """The metric that stands for the benchmark; empty without one."""
    values: Mapping[str, float]
    """Metric name to value; NaN where it could not be computed."""
    errors: Mapping[str, float]
    """Standard errors."""
    counts: Mapping[str, int]
    """Items behind a metric."""
    items: int
    """How many items were scored."""
    answers: Sequence[Answer]
    """In item order."""
    facts: Mapping[str, Any]
    """Everything in score.json, for what is only shown."""

    def text(self, key: str) -> str:
        """A fact as text; empty when it is absent."""
        value = self.facts.get(key)
        return "" if value is None else str(value)

    @functools.cached_property
    def labels(self) -> Mapping[str, Sequence[Label]]:
        """Item id -> its categories."""
        return {answer.id: labels(answer.reference, self.values) for answer in self.answers}

    @property
    def module(self) -> ModuleType | None:
        """The benchmark file; None when this version has none of that name."""
        if self.benchmark.replace("-", "_") not in plugins.list_names("benchmarks"):
            return None
        return plugins.find("benchmarks", self.benchmark)

    @property
    def most(self) -> float:
        """The primary metric's largest value."""
        return float(getattr(self.module, "PRIMARY_METRIC_MAX", 100.0))

    def higher_is_better(self, metric: str) -> bool:
        """Direction of a metric."""
        return metric not in getattr(self.module, "LOWER_IS_BETTER", ())


def is_evaluation(run: Path) -> bool:
    """Whether a folder holds what ``minivl eval`` writes."""
    return bool(_paths(run))


def _paths(run: Path) -> list[Path]:
    """The scores of a run: in the folder itself, one below or two below."""
    return [path for depth in ("", "*/", "*/*/") for path in sorted(run.glob(depth + SCORE))]


def read_run(run: Path) -> list[Result]:
    """Every benchmark of a run, sorted by folder.

    Raises:
        ValueError: there is no score, or a file is malformed (file and key or line named).
    """
    paths = _paths(run)
    if not paths:
        raise ValueError(f"{run} holds no BENCHMARK/{SCORE}; is it the folder of a finished evaluation?")
    return [_read(path) for path in paths]


def _read(path: Path) -> Result:
    raw = read_object(path, missing="is it the folder of a finished evaluation?", fix=_FIX)
    try:
        return _checked(raw, path.parent)
    except Malformed as error:
        raise ValueError(f"{path}: {error}; {_FIX}") from None


def _checked(raw: dict[str, Any], folder: Path) -> Result:
    name = get(raw, "benchmark", str)
    values = _numbers(raw, "values", get(raw, "values", dict))
    primary_metric = raw.get("primary_metric") or ""
    if isinstance(primary_metric, dict):
        shown = get(primary_metric, "name", str, "primary_metric.", default="")
        if shown and shown not in values:
            values = {shown: _number(primary_metric.get("value"), "primary_metric.value"), **values}
        primary_metric = shown
    if not isinstance(primary_metric, str):
        raise Malformed('"primary_metric" must be the name of a figure')
    answers = _answers(folder / ANSWERS)
    return Result(
        folder=folder,
        benchmark=name,
        title=get(raw, "title", str, default=name),
        primary_metric=primary_metric or next(iter(values), ""),
        values=values,
        errors=_numbers(raw, "errors", get(raw, "errors", dict, default={})),
        counts={key: int(n) for key, n in get(raw, "counts", dict, default={}).items() if is_number(n)},
        items=get(raw, "items", int, default=len(answers)),
        answers=answers,
        facts=raw,
    )


def _numbers(raw: Mapping[str, Any], key: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): _number(value, f"{key}.{name}") for name, value in metrics.items()}


def _number(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if not is_number(value):
        raise Malformed(f'"{where}" must be a number')
    return float(value)


def _answers(path: Path) -> list[Answer]:
    """The answers in order, of several with one id the last; a last line torn by a kill is left out."""
    if not path.is_file():
        return []
    # No splitlines, since an answer may hold U+2028.
    lines = [
        (n, line)
        for n, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1)
        if line.strip()
    ]
    found: dict[str, Answer] = {}
    for place, (number, line) in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if place == len(lines):
                break
            raise ValueError(f"{path}:{number}: no valid JSON; remove the line or {_FIX}") from None
        if not isinstance(row, dict) or row.get("id") is None:
            raise ValueError(f'{path}:{number}: the line must be an object with an "id"; remove it or {_FIX}')
        right = row.get("right")
        found[str(row["id"])] = Answer(
            id=str(row["id"]),
            question=_text(row.get("question")),
            text=_text(row.get("answer")),
            right=right if isinstance(right, bool) else None,
            reference=row.get("truth"),
        )
    return list(found.values())


def _text(value: Any) -> str:
    return "" if value is None else str(value)
