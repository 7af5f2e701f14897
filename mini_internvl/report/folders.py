"""Reads what the report is made of: evaluation folders, a training log, the facts of an adaptation.

A run folder holds any of them. An evaluation is ``BENCHMARK/score.json`` with ``BENCHMARK/predictions.jsonl``; an
adaptation (``adapt.json``) holds two evaluations, ``base`` and ``adapted``, and a training run. Only a benchmark's name
and values are needed; what else is absent is left out of the page.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mini_internvl import plugins
from mini_internvl.evaluate.outputs import PREDICTIONS, SCORE, benchmark_name, primary, score_paths
from mini_internvl.files import read_object
from mini_internvl.report.labels import Label, labels

ADAPTATION = "adapt.json"
LOG, RECIPE = "metrics.jsonl", "recipe.json"
UNSEEING = {
    "guess": "the most frequent training answer to questions of the same kind (of numbers the median), without a model",
    "blind": "the adapted model with grey in place of each image",
}
"""Evaluations of an adaptation that answer without seeing -> what they are."""
FEWEST = 10  # items below which equal results have no standard error, and an unpaired difference is never called clear
_KINDS: dict[type, str] = {str: "a text", dict: "an object", list: "a list", int: "a whole number"}


@dataclass(frozen=True, kw_only=True)
class ReportAnswer:
    """One line of the answers; ``right`` is the benchmark's check of it, None where it has none."""

    id: str
    question: str
    text: str
    right: bool | None
    reference: Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """One benchmark of an evaluation: values (NaN where none could be computed), errors and counts by metric.

    ``facts`` is everything in score.json, for what is only shown; ``primary_metric`` is empty without one.
    """

    folder: Path
    benchmark: str
    title: str
    primary_metric: str
    values: Mapping[str, float]
    errors: Mapping[str, float]
    counts: Mapping[str, int]
    items: int
    answers: Sequence[ReportAnswer]
    facts: Mapping[str, Any]

    def count(self, metric: str) -> int:
        return self.counts.get(metric, self.items)

    def error(self, metric: str) -> float:
        """Standard error of a metric; NaN without one, and where few equal results say nothing of how others spread."""
        error = self.errors.get(metric, math.nan)
        return error if self.count(metric) >= FEWEST or (error and self.count(metric) > 1) else math.nan

    @property
    def notes(self) -> Mapping[str, Any]:
        notes = self.facts.get("notes")
        return notes if isinstance(notes, Mapping) else {}

    @property
    def badges(self) -> list[tuple[str, str]]:
        """(word, sentence) of what keeps the score from being compared with a published one."""
        found = [("partial", self.text("partial"))] if self.text("partial") else []
        if self.facts.get("blind"):
            found.append(("blind", "asked with grey in place of each image"))
        limit, of = self.facts.get("limit"), self.facts.get("of")
        if isinstance(of, int) and of > self.items:
            found.append(("subset", f"a sample of {self.items:,} of {of:,} items"))
        elif limit:
            found.append(("subset", f"at most {limit} items were asked, not the whole benchmark"))
        first = next(iter(getattr(self.module, "PROTOCOLS", {})), "")
        if first and self.text("protocol") not in ("", first):
            found.append(("other protocol", f"protocol {self.text('protocol')}; the paper's is {first}"))
        return found

    def text(self, key: str) -> str:
        """A fact as text; empty when it is absent."""
        value = self.facts.get(key)
        return "" if value is None else str(value)

    @functools.cached_property
    def labels(self) -> Mapping[str, Sequence[Label]]:
        """Item id -> its categories."""
        return {answer.id: labels(answer.reference, self.values) for answer in self.answers}

    @functools.cached_property
    def module(self) -> ModuleType | None:
        """The benchmark file; None when there is none of that name or it cannot be loaded."""
        name = benchmark_name(self.folder / SCORE, self.facts)
        if not name.endswith(".py") and name not in plugins.list_names("benchmarks"):
            return None
        try:
            return plugins.find("benchmarks", name)
        except (ValueError, OSError, ImportError):
            return None

    @property
    def largest(self) -> float:
        """The primary metric's largest value."""
        return primary(self.module, self.values)[1] if self.module else 100.0

    def higher_is_better(self, metric: str) -> bool:
        return metric not in getattr(self.module, "LOWER_IS_BETTER", ())


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run folder holds: the results of its model, of the model before an adaptation, and of what does not see.

    ``facts`` is the content of adapt.json, and of the training run's recipe.json under "recipe".
    """

    results: Sequence[Result] = ()
    base: Sequence[Result] | None = None
    baselines: Mapping[str, Sequence[Result]] = field(default_factory=dict)
    log: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_parts(run: Path) -> Parts:
    """Everything in a run folder that the report shows; ValueError names a damaged file with its key or line."""
    if not run.is_dir():
        raise ValueError(f"{run} is no folder; give one that minivl eval, train or adapt wrote")
    if (run / ADAPTATION).is_file():
        facts = read_object(run / ADAPTATION)
        keys = ("base", "adapted", "train")
        base, adapted, train = (run / want(run / ADAPTATION, facts, key, str, key) for key in keys)
        found = {name: read_evaluation(run / name, needed=False) for name in UNSEEING}
        parts = Parts(
            results=read_evaluation(adapted),
            base=read_evaluation(base),
            baselines={name: results for name, results in found.items() if results},
            facts=facts,
        )
    else:
        train = run if (run / LOG).is_file() else run / "train"
        parts = Parts(results=read_evaluation(run, needed=not (train / LOG).is_file()))
    recipe = read_object(train / RECIPE) if (train / RECIPE).is_file() else {}
    log = train / LOG if (train / LOG).is_file() else None
    return replace(parts, log=log, facts={"recipe": recipe, **parts.facts})


def read_evaluation(run: Path, *, needed: bool = True) -> list[Result]:
    """Every benchmark of an evaluation, sorted by folder."""
    paths = score_paths(run)
    if needed and not paths:
        raise ValueError(
            f"{run} holds no BENCHMARK/{SCORE}, {ADAPTATION} or metrics.jsonl; "
            "give a folder that minivl eval, train or adapt wrote"
        )
    return [_read(path) for path in paths]


def want(path: Path, holder: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """``holder[key]`` of the wanted kind, or the default where it is absent; ValueError names file and key."""
    value = holder.get(key)
    value = default if value is None else value
    if not isinstance(value, kind):
        found = "is missing" if value is None else f"must be {_KINDS[kind]}"
        raise ValueError(f'{path}: "{key}" {found}; write the file again with the same command')
    return value


def _read(path: Path) -> Result:
    raw = read_object(path)
    name = want(path, raw, "benchmark", str)
    values = _numbers(path, want(path, raw, "values", dict), "values")
    answers = _answers(path.with_name(PREDICTIONS))
    return Result(
        folder=path.parent,
        benchmark=name,
        title=want(path, raw, "title", str, name),
        primary_metric=want(path, raw, "primary_metric", str, next(iter(values), "")),
        values=values,
        errors=_numbers(path, want(path, raw, "errors", dict, {}), "errors"),
        counts={k: int(n) for k, n in _numbers(path, want(path, raw, "counts", dict, {}), "counts").items()},
        items=want(path, raw, "items", int, len(answers)),
        answers=answers,
        facts=raw,
    )


def _numbers(path: Path, numbers: Mapping[str, Any], key: str) -> dict[str, float]:
    """Values as floats, null as NaN."""
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value)):
            raise ValueError(f'{path}: "{key}.{name}" must be a number; write the file again with the same command')
    return {name: math.nan if value is None else float(value) for name, value in numbers.items()}


def _answers(path: Path) -> list[ReportAnswer]:
    """The answers in order, of several with one id the last; a last line torn by a kill is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip().split("\n")  # an answer may hold U+2028
    found: dict[str, ReportAnswer] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise ValueError(f"{path}:{number}: no valid JSON; evaluate the benchmark again") from None
        if row is None:
            continue
        if not isinstance(row, dict) or row.get("id") is None:
            raise ValueError(f'{path}:{number}: the line must be an object with an "id"; evaluate the benchmark again')
        question, text = ("" if row.get(key) is None else str(row[key]) for key in ("question", "answer"))
        right = row.get("right") if isinstance(row.get("right"), bool) else None
        reference = row.get("reference", row.get("truth"))
        name = str(row["id"])
        found[name] = ReportAnswer(id=name, question=question, text=text, right=right, reference=reference)
    return list(found.values())
