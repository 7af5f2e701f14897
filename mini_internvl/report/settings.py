"""What a run was measured with, as a page lists it: what all benchmarks share, what each has, and the command lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mini_internvl.report.eval_folder import Result

FIGURES = (
    *("benchmark", "title", "primary_metric", "primary_value", "values", "errors", "counts"),
    *("items", "of", "partial", "notes"),
)
"""Keys of a score that are shown elsewhere than among its settings."""


def model_facts(result: Result) -> Mapping[str, Any]:
    """Name, path, hash and parameters of the model, as far as they are known."""
    model = result.facts.get("model")
    return model if isinstance(model, dict) else {"name": str(model or "")}


def flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as (name, text): {"data": {"path": "x"}} is ("data path", "x")."""
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if not prefix and key in FIGURES:
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{name} ")
        elif value not in (None, "", []):
            yield name, f"{value:,}" if isinstance(value, int) and name.endswith("parameters") else str(value)


def commands(results: Sequence[Result]) -> list[str]:
    """The command lines that ask the same again, for scores that name model and data."""
    lines: dict[str, list[str]] = {}
    for result in results:
        model, data = model_facts(result), result.facts.get("data")
        source = f"openai:{model['url']}#{model.get('name')}" if model.get("url") else model.get("path")
        if not source or not isinstance(data, dict) or not data.get("path"):
            continue
        options = {"model": source, "data": data["path"]}
        options |= {key: result.facts.get(key) for key in ("split", "protocol", "limit", "seed")}
        told = " ".join(f"--{key} {shlex.quote(str(value))}" for key, value in options.items() if value is not None)
        lines.setdefault(told, []).append(result.benchmark)
    return [f"minivl eval {' '.join(map(shlex.quote, names))} {told}" for told, names in lines.items()]


def common(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Settings that all benchmarks of the run have."""
    sides = [dict(flat(result.facts)) for result in results]
    return [(key, text) for key, text in sides[0].items() if all(side.get(key) == text for side in sides)]


def own(result: Result, results: Sequence[Result]) -> list[tuple[str, str]]:
    """Settings of one benchmark that are not common to all, and what it counted."""
    shared = dict(common(results))
    notes = result.facts.get("notes")
    counted = dict(flat(notes)) if isinstance(notes, Mapping) else {}
    mine = [(key, text) for key, text in flat(result.facts) if key not in shared]
    return [*mine, *((f"noted: {key}", text) for key, text in counted.items())]
