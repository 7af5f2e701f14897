"""What a training page shows beside its curves: how far the run is, what trains, answers over time, rows set aside.

Everything is read from the run folder as it stands, so the page can be made while the run goes on, or after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.model.files import CheckpointError
from mini_internvl.report.images import data_urls
from mini_internvl.report.page import significant
from mini_internvl.report.training import Log, read_log
from mini_internvl.train import state
from mini_internvl.train.log import QUARANTINE, SPEED
from mini_internvl.train.samples import FOLDER, IMAGES, read_samples

SHOWN_ROWS = 50  # quarantined rows that are listed
SHOWN_SAMPLES, SHOWN_ANSWERS = 24, 8  # samples, and different answers of each
IMAGE_BYTES, LARGEST_IMAGE = 3_000_000, 60_000  # JPEG bytes of all pictures and of one


@dataclass(frozen=True, kw_only=True)
class Told:
    """An answer and the measurements in a row that gave it."""

    when: str
    text: str
    right: bool | None  # True where it is the reference to the letter; nothing is judged otherwise


@dataclass(frozen=True, kw_only=True)
class AnsweredSample:
    """One sample with its answers in the order of the measurements; ``left_out`` of them are not shown."""

    id: str
    question: str
    reference: str
    images: Sequence[str | None]  # data URLs
    answers: Sequence[Told]
    left_out: int


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Everything of a run folder that the page shows beside its curves."""

    speed: Log
    progress: str = ""
    stages: Sequence[Mapping[str, str]] = ()
    samples: Sequence[AnsweredSample] = ()
    quarantined: Sequence[Mapping[str, Any]] = ()
    set_aside: int = 0  # rows in all


def watch(folder: Path, log: Log, recipe: Mapping[str, Any]) -> Watched:
    """Read a training run's folder; ValueError names a damaged record of answers."""
    rows = _quarantined(folder / QUARANTINE)
    return Watched(
        speed=read_log(folder / SPEED) if (folder / SPEED).is_file() else Log(),
        progress=_progress(folder, log, recipe),
        stages=[_stage(stage, recipe) for stage in _stages(recipe)],
        samples=_samples(folder, [str(stage.get("name")) for stage in _stages(recipe)]),
        quarantined=rows[:SHOWN_ROWS],
        set_aside=len(rows),
    )


def _stages(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = recipe.get("stages")
    return [stage for stage in found if isinstance(stage, Mapping)] if isinstance(found, list) else []


def _progress(folder: Path, log: Log, recipe: Mapping[str, Any]) -> str:
    """How far the run is: the last step of all, and whether more are to come."""
    stages = _stages(recipe)
    total = sum(stage.get("steps", 0) for stage in stages)
    if not total or not log.columns:
        return ""
    if log.last >= total:
        return f"All {total:,} steps are done."
    if _over(folder, stages[-1]):
        return f"Done after {log.last:,.0f} of {total:,} steps: a stage ended early, since it no longer got better."
    stage = log.borders[-1][1]
    return f"Step {log.last:,.0f} of {total:,}, in stage {stage}; make the page again to see later steps."


def _over(folder: Path, last: Mapping[str, Any]) -> bool:
    """Whether the saved state is the end of the last stage, which may come before its last step."""
    try:
        saved = state.newest(folder / "state")
    except CheckpointError:  # no state is whole; the log says how far the run is
        return False
    if saved is None or saved.counters["stage"] != last.get("name"):
        return False
    return bool(saved.counters.get("ended")) or saved.counters["step"] >= last.get("steps", 0)


def _stage(stage: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, str]:
    """A stage in words: its name, steps, what trains and how."""
    trains = stage.get("train", ())
    parts = [f"{name}{_given(trains[name])}" if isinstance(trains, Mapping) else str(name) for name in trains]
    lora = recipe.get("lora")
    adapters = f"; adapters of rank {lora.get('rank')} in {', '.join(lora.get('parts', ()))}" if lora else ""
    settings = {key: stage[key] for key in ("lr", "batch_size", "max_tiles", "max_length") if key in stage}
    return {
        "stage": str(stage.get("name", "")),
        "steps": f"{stage.get('steps', 0):,}",
        "trains": (", ".join(parts) or "heads alone") + adapters,
        "settings": ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in settings.items()),
    }


def _given(how: Any) -> str:
    """Settings of one part, in brackets."""
    told = {key: value for key, value in how.items() if value is not None} if isinstance(how, Mapping) else {}
    return f" ({', '.join(f'{key} {_number(value)}' for key, value in told.items())})" if told else ""


def _number(value: Any) -> str:
    return significant(value) if isinstance(value, float) else str(value)


def _quarantined(path: Path) -> list[dict[str, Any]]:
    """The rows that were set aside; a line torn by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # a name may hold U+2028
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _samples(folder: Path, stages: Sequence[str]) -> list[AnsweredSample]:
    """The kept answers by sample, equal ones in a row as one; a copied folder keeps no times, so stages go by name."""
    order = {name: place for place, name in enumerate(stages)}
    records = sorted(read_samples(folder), key=lambda record: order.get(record["stage"], len(order)))
    several = len({record["stage"] for record in records}) > 1
    by_sample: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for record in records:
        when = f"{record['stage']}, step {record['step']:,}" if several else f"step {record['step']:,}"
        for row in record["samples"]:
            by_sample.setdefault(row["id"], []).append((when, row))
    shown = list(by_sample.items())[:SHOWN_SAMPLES]
    sources = [folder / FOLDER / IMAGES / name for _, rows in shown for name in rows[-1][1]["images"]]
    urls = iter(data_urls(sources, IMAGE_BYTES, LARGEST_IMAGE))
    found = []
    for name, rows in shown:
        last = rows[-1][1]
        told = _told(rows)
        kept = _thinned(told)
        found.append(
            AnsweredSample(
                id=name,
                question=last["question"],
                reference=last["reference"],
                images=[next(urls) for _ in last["images"]],
                answers=kept,
                left_out=len(told) - len(kept),
            )
        )
    return found


def _told(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Told]:
    """One entry for each run of equal answers."""
    runs: list[list[tuple[str, Mapping[str, Any]]]] = []
    for when, row in rows:
        if runs and runs[-1][-1][1]["answer"] == row["answer"]:
            runs[-1].append((when, row))
        else:
            runs.append([(when, row)])
    found = []
    for run in runs:
        (first, row), (last, _) = run[0], run[-1]
        same = row["answer"].strip() == row["reference"].strip()
        begin, end = first.rpartition(" "), last.rpartition(" ")
        when = first if len(run) == 1 else f"{first} to {end[2] if begin[0] == end[0] else last}"
        found.append(Told(when=when, text=row["answer"], right=True if same else None))
    return found


def _thinned(told: list[Told]) -> list[Told]:
    """At most SHOWN_ANSWERS, the first and the last among them."""
    if len(told) <= SHOWN_ANSWERS:
        return told
    places = {round(i * (len(told) - 1) / (SHOWN_ANSWERS - 1)) for i in range(SHOWN_ANSWERS)}
    return [told[place] for place in sorted(places)]
