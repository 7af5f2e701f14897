"""The report of an adaptation: ``adapt.json`` and ``metrics.jsonl`` of a run folder -> one HTML file.

Everything is inside the file: style, charts and images; it runs no script. It names no domain: columns, groups and
clips come from ``adapt.json``, so a new domain needs nothing here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mini_internvl.report import curves, svg
from mini_internvl.report.page import count, duration, number, render, short, words, write
from mini_internvl.report.run_folder import SIDES, read_metrics, read_result

IMAGE_BYTES = 1_800_000
"""For all images of a page together; as base64 a third more, which keeps the file below 3 MB."""
EQUAL = 1e-6
"""Metrics as near as this count as equal: smoothing leaves 1e-12 of BLEU where no four words agree."""
LARGE_FALL = 0.10
"""Share of its value that a general ability may lose before the page warns."""

STATES = {
    (False, True): ("learned", "Wrong before, right after"),
    (True, False): ("lost", "Right before, wrong after"),
    (False, False): ("wrong", "Wrong both times"),
    (True, True): ("kept", "Right both times"),
}
"""(base right, adapted right) -> class and words of the filter."""
UNJUDGED = "unjudged"
"""Class of a question that the benchmark gave no marks for."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One column of the score table, before and after."""

    group: str
    """For instance "Description" or "Speed"."""
    label: str
    """For instance "CIDEr"."""
    base: float
    """Before; NaN where the model has no value."""
    adapted: float
    """After; NaN where the model has no value."""
    higher_is_better: bool
    """Direction."""
    unit: str = ""
    """Unit of both values, empty where the label says it."""

    @property
    def name(self) -> str:
        """Group and label."""
        return f"{self.group} {self.label}"

    @property
    def change(self) -> float:
        """After minus before."""
        return self.adapted - self.base

    @property
    def equal(self) -> bool:
        """Whether both values are there and the same."""
        return abs(self.change) <= EQUAL

    @property
    def better(self) -> bool | None:
        """Whether the adapted value is better; None when both are equal or one is missing."""
        if math.isnan(self.change) or self.equal:
            return None
        return (self.change > 0) == self.higher_is_better


def rows(data: Mapping[str, Any]) -> list[Row]:
    """The score table in the order of ``columns``. A metric that a model has no value for is NaN, never dropped."""
    table = []
    for column in data["columns"]:
        sides = data["benchmarks"][column["benchmark"]]
        base, adapted = (sides[side]["values"].get(column["key"]) for side in SIDES)
        table.append(
            Row(
                group=column["group"],
                label=column["label"],
                base=math.nan if base is None else float(base),
                adapted=math.nan if adapted is None else float(adapted),
                higher_is_better=column["higher_is_better"],
                unit=column.get("unit", ""),
            )
        )
    return table


def verdict(data: Mapping[str, Any]) -> str:
    """The result in one plain sentence: on how many columns it is better, and what became of general ability."""
    table = rows(data)
    better = sum(row.better is True for row in table)
    text = f"The adapted model is better than the base on {better} of {len(table)} columns"
    mean = (data.get("general") or {}).get("mean")
    if not mean:
        return f"{text}; general ability was not measured."
    before, after = float(mean["base"]), float(mean["adapted"])
    if before == after:
        return f"{text}; general ability stayed at {before:.1f}."
    share = f" ({100 * (after - before) / before:+.1f} %)" if before else ""
    return f"{text}; general ability changed from {before:.1f} to {after:.1f}{share}."


def caveats(data: Mapping[str, Any]) -> list[str]:
    """What became worse or could not be compared, one plain sentence each; empty when nothing did."""
    table = rows(data)
    worse = [f"{row.name} ({row.base:.2f} to {row.adapted:.2f})" for row in table if row.better is False]
    equal = [row.name for row in table if row.equal]
    missing = [row.name for row in table if math.isnan(row.change)]
    found = []
    if worse:
        found.append(f"Worse than before on {count(worse, 'column')}: {', '.join(worse)}.")
    if equal:
        found.append(f"Unchanged on {count(equal, 'column')}: {', '.join(equal)}.")
    if missing:
        found.append(f"Not compared, because a value is missing, on {count(missing, 'column')}: {', '.join(missing)}.")
    general = data.get("general") or {}
    metrics = [(kind, *(float(general[side][kind]) for side in SIDES)) for kind in general.get("kinds", ())]
    if general.get("mean"):
        metrics.append(("the mean", *(float(general["mean"][side]) for side in SIDES)))
    fallen = [f"{words(k)} ({a:.1f} to {b:.1f})" for k, a, b in metrics if a > 0 and (a - b) / a > LARGE_FALL]
    if fallen:
        found.append(
            f"General ability fell by more than {100 * LARGE_FALL:.0f} % of its value on: {', '.join(fallen)}."
        )
    return found


def build(run: str | Path) -> Path:
    """Write ``report.html`` into the run folder, whole or not at all.

    Returns:
        The path of the file.

    Raises:
        ValueError: ``adapt.json`` is missing, malformed or lacks a key (file and key named), or jinja2 is missing.
    """
    run = Path(run)
    data, metrics = read_result(run), read_metrics(run)
    table = rows(data)
    page = render(
        "adaptation.html",
        data=data,
        verdict=verdict(data),
        caveats=caveats(data),
        tiles=_tiles(data, table),
        table=table,
        groups=_grouped(table),
        notes=[(name, _notes(sides)) for name, sides in data["benchmarks"].items()],
        general=_general(data["general"]),
        training=curves.metrics(metrics),
        charts=curves.charts(metrics),
        clips=_clips(data["clips"], run),
        states=_states(data["clips"]),
        recipe=yaml.safe_dump(data["recipe"], sort_keys=False, allow_unicode=True) if data["recipe"] else "",
        seeds=", ".join(dict.fromkeys(_seeds(data["recipe"]))),
    )
    return write(run / "report.html", page)


def _grouped(table: Sequence[Row]) -> list[tuple[str, list[Row], bool]]:
    """(group, rows, whether its names are short enough for columns of fixed width)."""
    groups: dict[str, list[Row]] = {}
    for row in table:
        groups.setdefault(row.group, []).append(row)
    return [(name, part, all(len(row.label + row.unit) <= 8 for row in part)) for name, part in groups.items()]


def _tiles(data: Mapping[str, Any], table: Sequence[Row]) -> list[tuple[str, str]]:
    """The metrics on top of the page, (value, what it is); those without data are left out."""
    better = sum(row.better is True for row in table)
    tiles = [(f"{better} of {len(table)}", "columns better than the base")]
    if data["general"]:
        mean = data["general"]["mean"]
        tiles.append((f"{number(mean['adapted'], 1)} %", f"general ability; base {number(mean['base'], 1)} %"))
    questions = [question for clip in data["clips"] for question in clip["questions"]]
    judged = sum(_state(question) != UNJUDGED for question in questions)
    if judged:
        base, adapted = (sum(question[f"{side}_right"] is True for question in questions) for side in SIDES)
        tiles.append((f"{adapted} of {judged}", f"answers right on the clips below; base {base}"))
    seconds = data["seconds"]
    if "total" in seconds:
        part = f"; adapting {duration(seconds['adapt'])}" if "adapt" in seconds else ""
        tiles.append((duration(seconds["total"]), f"for the whole run{part}"))
    return tiles


def _notes(sides: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a benchmark counted, (name, "97 → 0") or (name, "150") where both sides agree."""
    base, adapted = (
        {"questions": str(sides[side].get("items", "–"))} | dict(_flat(sides[side].get("notes") or {}))
        for side in SIDES
    )
    pairs = [(words(key), base.get(key, "–"), adapted.get(key, "–")) for key in {**base, **adapted}]
    return [(name, before if before == after else f"{before} → {after}") for name, before, after in pairs]


def _flat(notes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested notes as ("unreadable, speed", "3")."""
    for key, value in notes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}, ")
        else:
            yield f"{prefix}{key}", f"{value:g}" if isinstance(value, float) else str(value)


def _general(general: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the general table, the mean last."""
    if not general:
        return []
    table = [
        {"kind": kind, "count": general["counts"].get(kind), **{side: float(general[side][kind]) for side in SIDES}}
        for kind in general["kinds"]
    ]
    table.append({"kind": "mean", "count": None, **{side: float(general["mean"][side]) for side in SIDES}})
    for row in table:
        row["bars"] = svg.bars(row["base"], row["adapted"], 100.0)
    return table


def _state(question: Mapping[str, Any]) -> str:
    return STATES.get((question["base_right"], question["adapted_right"]), (UNJUDGED, ""))[0]


def _states(clips: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """Choices of the filter: class, words, how many questions."""
    counts = Counter(_state(question) for clip in clips for question in clip["questions"])
    return [("all", "All", sum(counts.values())), *((name, text, counts[name]) for name, text in STATES.values())]


def _clips(clips: Sequence[Mapping[str, Any]], run: Path) -> list[dict[str, Any]]:
    from mini_internvl.report.data_urls import data_url

    budget = IMAGE_BYTES // max(1, sum(len(clip["frames"]) for clip in clips))
    shown = []
    for clip in clips:
        questions = [
            {**question, **{side: short(question[side]) for side in ("truth", *SIDES)}, "state": _state(question)}
            for question in clip["questions"]
        ]
        right = {side: sum(q[f"{side}_right"] is True for q in questions) for side in SIDES}
        judged = sum(q["state"] != UNJUDGED for q in questions)
        frames = [(frame, data_url(run / frame, budget)) for frame in clip["frames"]]
        shown.append({"id": clip["id"], "frames": frames, "questions": questions, "right": right, "judged": judged})
    return shown


def _seeds(recipe: Any, name: str = "run") -> Iterator[str]:
    """Every seed in a recipe with the name of what it seeds: "run 0", "driving-sim 0", "shapes 7"."""
    if isinstance(recipe, Mapping):
        if "seed" in recipe:
            yield f"{name} {recipe['seed']}"
        parts = list(recipe.items())
    elif isinstance(recipe, list):
        parts = [(name, part) for part in recipe]
    else:
        return
    for key, part in parts:
        yield from _seeds(part, str(part.get("name", key)) if isinstance(part, Mapping) else str(key))
