"""What a run was measured with, as a page lists it: what all benchmarks share, what each has, and the command lines."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.report.folders import Parts, Result
from mini_internvl.report.page import duration

FIGURES = (
    *("benchmark", "title", "primary_metric", "primary_value", "values", "errors", "counts"),
    *("items", "of", "partial", "notes"),
)
"""Keys of a score that are shown elsewhere than among its settings."""


def model(result: Result) -> Mapping[str, Any]:
    """Name, path, hash and parameters of the model, as far as they are known."""
    model = result.facts.get("model")
    return model if isinstance(model, dict) else {"name": str(model or "")}


def model_name(results: Sequence[Result]) -> str:
    names = dict.fromkeys(str(model(result).get("name") or "") for result in results)
    return ", ".join(name for name in names if name) or "unnamed model"


def flat(facts: Mapping[str, Any], prefix: str = "", hidden: Collection[str] = FIGURES) -> Iterator[tuple[str, str]]:
    """Settings as (name, text), those of ``hidden`` left out: {"data": {"path": "x"}} is ("data path", "x")."""
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if key in hidden:
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{name} ", ())
        elif value not in (None, "", []):
            yield name, f"{value:,}" if isinstance(value, int) and name.endswith("parameters") else str(value)


def model_option(path: str) -> str:
    """``--model PATH`` as typed; nothing for nano, which every command takes without it."""
    return "" if path in ("", "nano") else f" --model {shlex.quote(path)}"


def next_commands(parts: Parts, run: Path) -> list[tuple[str, str]]:
    """(what for, command): how to ask the model that the page is about, and what to do with the run."""
    if checkpoint := parts.facts.get("checkpoint"):
        path = str(run / str(checkpoint))
    elif not parts.results:
        path = str(run / ("best" if (run / "best").is_dir() else "last"))
    else:
        facts = model(parts.results[0])
        path = "" if facts.get("url") else str(facts.get("path") or "")
    model_text = model_option(path)
    ask = ("Ask the model", f'minivl ask IMAGE "your question"{model_text}')
    chat = ("Talk about images", f"minivl chat{model_text}")
    score = ("Score it", f"minivl eval BENCHMARK --data FOLDER{model_text}")
    against = ("Compare with another run", f"minivl report {shlex.quote(str(run))} --against OTHER_RUN")
    return [*((ask, chat) if path else ()), against if parts.results else score]


def commands(results: Sequence[Result]) -> list[str]:
    """The command lines that ask the same again, for scores that name data, and a model or its answers."""
    lines: dict[str, list[str]] = {}
    for result in results:
        facts, data = model(result), result.facts.get("data")
        source = f"openai:{facts['url']}#{facts.get('name')}" if facts.get("url") else str(facts.get("path") or "")
        answers = facts.get("answers")
        if not (source or answers) or not isinstance(data, dict):
            continue
        options = {"data": data.get("path"), **{k: result.facts.get(k) for k in ("split", "protocol", "limit", "seed")}}
        options["max-tiles"] = result.facts.get("tiles_setting")
        if result.facts.get("names"):  # drawn images: kinds, and how many of each
            options |= {"kinds": ",".join(result.facts["names"]), "limit": result.facts.get("count")}
        given = {key: shlex.quote(str(value)) for key, value in options.items() if value is not None}
        arguments = "".join(f" --{key} {value}" for key, value in given.items())
        name = shlex.quote(result.text("benchmark_file") or result.benchmark)
        if answers:
            lines[f"minivl score {name} {shlex.quote(str(answers))}{arguments}"] = []
        else:
            lines.setdefault(f"{model_option(source)}{arguments}", []).append(name)
    return [f"minivl eval {' '.join(names)}{rest}" if names else rest for rest, names in lines.items()]


def of_run(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What adapt.json records besides the scores."""
    keys = ("domain", "created", "model", "data", "settings", "versions", "machine")
    listed = flat({key: facts[key] for key in keys if key in facts})
    seconds = facts.get("seconds")
    times = seconds if isinstance(seconds, Mapping) else {}
    return [*listed, *((f"time {key}", duration(value)) for key, value in times.items())]


def common(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Settings that all benchmarks of the run have."""
    sides = [dict(flat(result.facts)) for result in results] or [{}]
    return [(key, text) for key, text in sides[0].items() if all(side.get(key) == text for side in sides)]


def own(result: Result, results: Sequence[Result]) -> list[tuple[str, str]]:
    """Settings of one benchmark that are not common to all."""
    shared = dict(common(results))
    return [(key, text) for key, text in flat(result.facts) if key not in shared]
