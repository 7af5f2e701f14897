"""The files of an evaluation, one folder a benchmark: ``predictions.jsonl``, ``score.json`` and ``timing.json``.

The first two hold nothing that differs between two runs of the same evaluation: a run that was stopped and went on
writes the same bytes. What was measured by the clock stands in the third.
"""

from __future__ import annotations

import functools
import inspect
import json
import platform
import random
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import mini_internvl
from mini_internvl import plugins
from mini_internvl.files import write_text
from mini_internvl.inputs.messages import question
from mini_internvl.records import Item, Prediction, Score

PREDICTIONS, SCORE, TIMING = "predictions.jsonl", "score.json", "timing.json"


def sample(benchmark: ModuleType, items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """A random sample of the items, in their order; all when ``limit`` does not cut.

    Items that a metric is taken over together (the benchmark's ``together``) are taken or left together, so there may
    be a few more than ``limit``.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is {limit}; it must be at least 1")
    if limit is None or limit >= len(items):
        return list(items)
    group = getattr(benchmark, "together", lambda item: item.id)
    members: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        members.setdefault(group(item), []).append(place)
    groups = sorted(members)
    random.Random(seed).shuffle(groups)
    taken: list[int] = []
    for name in groups:
        if len(taken) >= limit:
            break
        taken += members[name]
    return [items[place] for place in sorted(taken)]


def result_folder(run: Path, benchmark: str, split: str, protocol: str) -> Path:
    """Where a benchmark's files go: ``BENCHMARK``, or below it beside the files of another split or protocol.

    The folder below is called after what is different: ``SPLIT``, ``PROTOCOL`` or ``SPLIT-PROTOCOL``.
    """
    for name in (SCORE, TIMING):
        try:
            held = json.loads((run / benchmark / name).read_text(encoding="utf-8"))
            there = (held["split"], held.get("protocol") or protocol)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # nothing there that could be lost
        other = [mine for mine, theirs in zip((split, protocol), there, strict=True) if mine != theirs]
        return run / benchmark / "-".join(other) if other else run / benchmark
    return run / benchmark


def benchmark_name(score: Path, facts: Mapping[str, Any]) -> str:
    """What finds a score's benchmark: its name, or the path of one's own file.

    A file that may have come with the scores, named from the working folder or lying in theirs, is not run.
    """
    file = Path(str(facts.get("benchmark_file") or ""))
    if file.is_absolute() and not file.resolve().is_relative_to(score.resolve().parent.parent):
        return str(file)
    return plugins.short_name(str(facts["benchmark"]))


def check_model(folder: Path, model: Mapping[str, Any], *, blind: bool = False, think: bool = False) -> None:
    """Refuse a run folder that holds another model's scores, or its own to questions asked otherwise: with images where
    these are without (``blind``), at once where these are thought about (``think``), and the reverse, or with other
    thresholds of a Flash model, other visual tokens or int8 weights. ValueError names the folder and the model."""
    for path in score_paths(folder):
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            other = held["model"]
            place = [(facts["name"], facts.get("path", facts.get("answers", ""))) for facts in (other, model)]
            same = place[0] == place[1] or (other["sha256"] and other["sha256"] == model["sha256"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # no score of ours; it says nothing about a model
        if not same:
            raise ValueError(f"{folder} holds scores of another model, {other['name']} ({path}); give another --output")
        if other.get("flash") != model.get("flash"):
            how = f"with --flash {other['flash']}" if other.get("flash") else "without --flash"
            raise ValueError(f"{folder} holds answers given {how} ({path}); give another --output")
        if (tokens := other.get("visual_tokens")) != model.get("visual_tokens"):
            how = f"with --visual-tokens {tokens}" if tokens else "with all visual tokens"
            raise ValueError(f"{folder} holds answers given {how} ({path}); give another --output")
        if (weights := other.get("weights")) != model.get("weights"):
            how = f"with {weights} weights" if weights else "with the model's own weights"
            raise ValueError(f"{folder} holds answers given {how} ({path}); give another --output")
        if bool(held.get("blind")) != blind:
            asked = "with their images" if blind else "with grey in place of their images"
            raise ValueError(f"{folder} holds answers to questions {asked} ({path}); give another --output")
        if bool(held.get("think")) != think:
            how = "at once" if think else "after thinking aloud"
            raise ValueError(f"{folder} holds answers given {how} ({path}); give another --output")


def check_kept(folder: Path, items: int) -> None:
    """Refuse to replace a score of more items than these; ValueError names it."""
    try:
        held = int(json.loads((folder / SCORE).read_text(encoding="utf-8"))["items"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # nothing there that could be lost
    if held > items:
        raise ValueError(
            f"{folder / SCORE} is of {held:,} items, a sample of {items:,} would replace it; give another --output"
        )


def check(benchmark: ModuleType, protocol: str | None) -> Callable[[Item, str], bool]:
    """The benchmark's check of one answer, by the rules of a protocol where they differ."""
    if protocol and "protocol" in inspect.signature(benchmark.right).parameters:
        return functools.partial(benchmark.right, protocol=protocol)
    return benchmark.right


def rows(
    benchmark: ModuleType,
    items: Sequence[Item],
    predictions: Sequence[Prediction],
    *,
    protocol: str | None = None,
    scored: bool = True,
) -> list[dict[str, Any]]:
    """One row per item: id, question, answer, whether it is right by a protocol's rules, reference."""
    texts = {prediction.item_id: prediction.text for prediction in predictions}
    thoughts = {prediction.item_id: prediction.thought for prediction in predictions if prediction.thought}
    right = check(benchmark, protocol) if scored else None
    return [
        {
            "id": item.id,
            "question": question(item.messages),
            "answer": texts.get(item.id, ""),
            **({"thought": thoughts[item.id]} if item.id in thoughts else {}),
            "right": bool(right(item, texts.get(item.id, ""))) if right else None,
            "reference": item.reference,
        }
        for item in items
    ]


def versions() -> dict[str, str]:
    """Of the package, torch and Python."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = ""
    return {"mini_internvl": mini_internvl.__version__, "torch": torch, "python": platform.python_version()}


def primary(benchmark: ModuleType, values: Container[str]) -> tuple[str, float]:
    """The metric that stands for a benchmark, and its largest value; another one where that is missing among the
    ``values`` for want of a judge."""
    unjudged = getattr(benchmark, "UNJUDGED_METRIC", None)
    if benchmark.PRIMARY_METRIC not in values and unjudged in values:
        return str(unjudged), float(getattr(benchmark, "UNJUDGED_METRIC_MAX", 100.0))
    return benchmark.PRIMARY_METRIC, float(getattr(benchmark, "PRIMARY_METRIC_MAX", 100.0))


def result(benchmark: ModuleType, score: Score, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``score.json``."""
    primary_metric, _ = primary(benchmark, score.values)
    return {
        "benchmark": score.benchmark,
        "title": getattr(benchmark, "TITLE", score.benchmark),
        "primary_metric": primary_metric,
        "primary_value": score.values.get(primary_metric),
        "values": dict(score.values),
        "errors": dict(score.errors),
        "counts": dict(score.counts),
        "partial": score.partial,
        "notes": dict(score.notes),
        **about,
    }


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), errors="backslashreplace")


def score_paths(run: Path) -> list[Path]:
    """The score files of a run folder, sorted: in the folder itself, one below or two below."""
    return [path for depth in ("", "*/", "*/*/") for path in sorted(run.glob(depth + SCORE))]
