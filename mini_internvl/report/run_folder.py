"""Reads the folder of a finished adaptation: ``adapt.json`` and ``metrics.jsonl``, checked and with defaults filled in.

Only the model's name, the columns and the metrics they name are needed. Everything else may be absent and is then
empty, so that the page simply says less.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mini_internvl.report.checked import Malformed, get, is_number, read_object

RESULT = "adapt.json"
METRICS = ("train/metrics.jsonl", "metrics.jsonl")
"""Where the training log may be, in this order."""
SIDES = ("base", "adapted")

_KINDS: Mapping[str, type] = {
    **dict.fromkeys(("title", "domain", "command", "created", "adapted_sha256"), str),
    **dict.fromkeys(("model", "benchmarks", "versions", "machine", "seconds", "recipe", "data", "general"), dict),
    **dict.fromkeys(("columns", "clips"), list),
}
"""The keys of adapt.json that are read."""
_FIX = "run the adaptation again"


def read_result(run: Path) -> dict[str, Any]:
    """The content of ``adapt.json``, every key of it that is read present and of the right kind.

    Metrics of ``general`` are per cent of right answers; its mean is filled in where it is missing.

    Raises:
        ValueError: the file is missing, is no JSON object, or a key is missing or of the wrong kind (named).
    """
    path = run / RESULT
    raw = read_object(path, missing=f"is {run} the folder of a finished adaptation?", fix=_FIX)
    try:
        return _checked(raw)
    except Malformed as error:
        raise ValueError(f"{path}: {error}; {_FIX}") from None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of the training log in order; empty when there is none. A last line torn by a kill is left out.

    Raises:
        ValueError: another line is no JSON object with a number ``step`` (file and line named).
    """
    path = next((run / name for name in METRICS if (run / name).is_file()), None)
    if path is None:
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise ValueError(f"{path}:{number}: no valid JSON; remove the line or {_FIX}") from None
        if row is not None:
            if not isinstance(row, dict) or not is_number(row.get("step")):
                raise ValueError(f'{path}:{number}: "step" must be a number; remove the line or {_FIX}')
            rows.append(row)
    return rows


def _checked(raw: Any) -> dict[str, Any]:
    data = {key: get(raw, key, kind, default=kind()) for key, kind in _KINDS.items()}
    for key in ("model", "benchmarks", "columns"):
        get(raw, key, _KINDS[key])
    get(data["model"], "name", str, "model.")
    if not isinstance(data["model"].setdefault("parameters", 0), int):
        raise Malformed('"model.parameters" must be a whole number')
    data["title"] = data["title"] or data["domain"] or "Adaptation"
    for name in data["benchmarks"]:
        sides = get(data["benchmarks"], name, dict, "benchmarks.")
        for side in SIDES:
            get(get(sides, side, dict, f"benchmarks.{name}."), "values", dict, f"benchmarks.{name}.{side}.")
    data["columns"] = [_column(column, f"columns[{i}]", data["benchmarks"]) for i, column in enumerate(data["columns"])]
    data["general"] = _general(data["general"])
    data["clips"] = [_clip(clip, i) for i, clip in enumerate(data["clips"])]
    return data


def _column(column: Any, where: str, benchmarks: Mapping[str, Any]) -> dict[str, Any]:
    name = get(column, "benchmark", str, f"{where}.")
    key = get(column, "key", str, f"{where}.")
    if name not in benchmarks:
        raise Malformed(f'"{where}.benchmark" is "{name}", which "benchmarks" does not hold')
    for side in SIDES:
        value = benchmarks[name][side]["values"].get(key)
        if value is not None and not is_number(value):
            raise Malformed(f'"benchmarks.{name}.{side}.values.{key}" must be a number')
    return {
        "benchmark": name,
        "key": key,
        "label": get(column, "label", str, f"{where}.", default=key),
        "group": get(column, "group", str, f"{where}.", default=name),
        "unit": get(column, "unit", str, f"{where}.", default=""),
        "higher_is_better": get(column, "higher_is_better", bool, f"{where}."),
    }


def _general(general: dict[str, Any]) -> dict[str, Any]:
    """Kinds of the probe with both metrics, and the mean; empty when nothing was probed."""
    if not general:
        return {}
    metrics = {side: get(general, side, dict, "general.") for side in SIDES}
    for side, values in metrics.items():
        for kind, value in values.items():
            if not is_number(value):
                raise Malformed(f'"general.{side}.{kind}" must be a number')
    kinds = [kind for kind in metrics["base"] if kind in metrics["adapted"]]
    if not kinds:
        return {}
    mean = get(general, "mean", dict, "general.", default={})
    for side in SIDES:
        mean.setdefault(side, sum(metrics[side][kind] for kind in kinds) / len(kinds))
        if not is_number(mean[side]):
            raise Malformed(f'"general.mean.{side}" must be a number')
    return {"kinds": kinds, **metrics, "counts": get(general, "items", dict, "general.", default={}), "mean": mean}


def _clip(clip: Any, index: int) -> dict[str, Any]:
    where = f"clips[{index}]"
    frames = get(clip, "frames", list, f"{where}.", default=[])
    if not all(isinstance(frame, str) for frame in frames):
        raise Malformed(f'"{where}.frames" must be a list of paths')
    questions = []
    for i, raw in enumerate(get(clip, "questions", list, f"{where}.")):
        place = f"{where}.questions[{i}]."
        question: dict[str, Any] = {}
        for key in ("kind", "question", "truth", "base", "adapted"):
            value = raw.get(key) if isinstance(raw, dict) else get(raw, key, str, place)
            question[key] = "" if value is None else str(value)
        for side in SIDES:
            right = raw.get(f"{side}_right")
            question[f"{side}_right"] = None if right is None else get(raw, f"{side}_right", bool, place)
        questions.append(question)
    return {"id": str(clip.get("id", index + 1)), "frames": frames, "questions": questions}
