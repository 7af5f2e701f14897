"""Probing: encoders on tasks, measure by measure, each with what it says of every test picture.

Results hold a mark for each test picture, so that two encoders are compared picture by picture. ``probe.json`` is the
same for the same encoders, pictures and settings; what was measured by the clock is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mini_internvl.benchmarks._tally import mean_error
from mini_internvl.evaluate.probing.agreement import Agreement, agree
from mini_internvl.evaluate.probing.features import POOLS, Encoder, Wanted, collect, pool
from mini_internvl.evaluate.probing.shown import write_shown
from mini_internvl.evaluate.probing.tasks import Task
from mini_internvl.files import write_json
from mini_internvl.metrics import linear_probe
from mini_internvl.metrics.neighbours import NEIGHBOURS, TEMPERATURE, class_recall, pair_recall, vote
from mini_internvl.metrics.similarity import effective_rank

PROBE = "probe.json"
TITLES = {
    "knn": "k nearest neighbours",
    "linear": "linear probe",
    "class_recall_1": "same class first",
    "class_recall_5": "same class in 5",
    "view_recall_1": "other view first",
    "view_recall_5": "other view in 5",
}
"""Measure -> what tables call it; all are per cent of test pictures."""
Progress = Callable[[str, int, int], None]  # title, done, of


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How encoders are probed."""

    layer: int = -1  # hidden state, from 0 after the embedding; negative ones count from the last
    pool: str = "mean"  # features of a picture: mean of patches, cls, or both
    image_size: int | None = None  # side of the tile in pixels; the encoder's own when left out
    neighbours: int = NEIGHBOURS
    temperature: float = TEMPERATURE
    views: int = 256  # test pictures of which another view is looked for
    seed: int = 0  # of the views, and of what the linear probe holds out

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ValueError(f'pool is "{self.pool}"; known: {", ".join(POOLS)}')
        if self.neighbours < 1 or self.temperature <= 0 or self.views < 2:
            raise ValueError("neighbours must be at least 1, the temperature above 0 and views at least 2")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Per cent of test pictures, with its standard error."""

    value: float
    error: float
    marks: tuple[bool, ...]  # of each test picture that was asked, in the order of the task

    @classmethod
    def of(cls, marks: np.ndarray) -> Measure:
        steps = [float(mark) for mark in marks]
        return cls(value=100 * float(np.mean(steps)), error=100 * mean_error(steps), marks=tuple(map(bool, marks)))


@dataclass(frozen=True, kw_only=True)
class Result:
    """One encoder on one task."""

    task: str
    model: str
    measures: Mapping[str, Measure]  # by the names in TITLES
    rank: float  # effective rank of the test features
    width: int  # of a picture's features
    penalty: float  # that the linear probe chose

    def as_json(self) -> dict[str, Any]:
        return {
            **{"task": self.task, "model": self.model, "rank": round(self.rank, 3), "width": self.width},
            "penalty": self.penalty,
            "measures": {
                name: {
                    "value": round(one.value, 4),
                    "error": round(one.error, 4),
                    "items": len(one.marks),
                    "marks": "".join("01"[mark] for mark in one.marks),
                }
                for name, one in self.measures.items()
            },
        }


@dataclass(frozen=True, kw_only=True)
class Probed:
    """All that was measured."""

    settings: ProbeSettings
    encoders: Sequence[Encoder]
    tasks: Sequence[Task]
    results: Sequence[Result]
    agreements: Sequence[Agreement]
    teacher: str = ""

    def result(self, task: str, model: str) -> Result:
        return next(one for one in self.results if (one.task, one.model) == (task, model))

    def as_json(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "teacher": self.teacher,
            "models": [
                {
                    **{"name": one.name, "path": one.path, "key": one.key, "states": one.states},
                    "hidden_size": one.model.config.hidden_size,
                    "image_size": self.settings.image_size or one.model.config.image_size,
                    "parameters": sum(tensor.numel() for tensor in one.model.parameters()),
                }
                for one in self.encoders
            ],
            "tasks": [
                {
                    **{"name": task.name, "classes": list(task.classes), "train": len(task.train)},
                    **{"test": len(task.test), "chance": round(task.chance, 4)},
                }
                for task in self.tasks
            ],
            "results": [one.as_json() for one in self.results],
            "agreements": [one.as_json() for one in self.agreements],
        }


def probe(
    models: Sequence[Encoder],
    tasks: Sequence[Task],
    *,
    teacher: Encoder | None = None,
    settings: ProbeSettings | None = None,
    folder: Path | None = None,
    progress: Progress = lambda title, done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Probed:
    """Measure each encoder on each task, and how far it agrees with a teacher, which is measured like the others.

    Args:
        models: encoders of :func:`open_encoder`, with different names.
        tasks: of :func:`read_task`, with different names.
        teacher: compared with each model; a model that is the teacher itself is not.
        settings: the defaults where left out.
        folder: where ``probe.json`` is written, and what a page shows.
        progress: called with a title, pictures done and pictures in all.
        should_stop: asked between blocks of pictures.

    Raises:
        ValueError: two models or tasks share a name, or a setting does not fit an encoder.
        ImageError: a picture cannot be read.
        Interrupted: ``should_stop`` said so; features that were computed are kept.
    """
    settings = settings or ProbeSettings()
    every = [*models, *([teacher] if teacher and teacher.key not in {one.key for one in models} else [])]
    for what, names in (("models", [one.name for one in every]), ("tasks", [one.name for one in tasks])):
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"{what} need different names, not {', '.join(names) or 'none'}")
    results, agreements = list[Result](), list[Agreement]()
    for task in tasks:
        for one in every:
            title = f"{task.name}: {one.name}"

            def show(done: int, total: int, title: str = title) -> None:
                progress(title, done, total)

            results.append(_measure(one, task, settings, show, should_stop))
            if teacher and one.key != teacher.key:
                sizes = (_size(one, settings), _size(teacher, settings))
                agreements.append(agree(one, teacher, task, sizes=sizes, progress=show, should_stop=should_stop))
    probed = Probed(
        settings=settings,
        encoders=every,
        tasks=tasks,
        results=results,
        agreements=agreements,
        teacher=teacher.name if teacher else "",
    )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {one.name: _wanted(one, settings) for one in every}
        reference = teacher.name if teacher and teacher in every else every[0].name
        write_shown(every, tasks, reference=reference, wanted=wanted, how=settings.pool, folder=folder)
        write_json(folder / PROBE, probed.as_json())
    return probed


def _size(encoder: Encoder, settings: ProbeSettings) -> int:
    return settings.image_size or encoder.model.config.image_size


def _wanted(encoder: Encoder, settings: ProbeSettings, view: int = 0) -> Wanted:
    """What of a picture is measured."""
    if not -encoder.states <= settings.layer < encoder.states:
        raise ValueError(f"layer is {settings.layer}; {encoder.name} has the hidden states 0 to {encoder.states - 1}")
    return Wanted(layers=(settings.layer % encoder.states,), size=_size(encoder, settings), view=view)


def _measure(
    encoder: Encoder,
    task: Task,
    settings: ProbeSettings,
    progress: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> Result:
    calls: dict[str, Any] = {"progress": progress, "should_stop": should_stop}

    def features(pictures: Sequence[Any], view: int = 0) -> np.ndarray:
        return pool(collect(encoder, pictures, _wanted(encoder, settings, view), **calls)[:, 0], settings.pool)

    train, test = features(task.train), features(task.test)
    views = features(task.test[: settings.views], view=1 + settings.seed)
    known, asked = (np.array([one.label for one in side]) for side in (task.train, task.test))
    probe = linear_probe.choose(train, known, seed=settings.seed)
    voted = vote(train, known, test, k=settings.neighbours, temperature=settings.temperature)
    marks = {"knn": voted == asked, "linear": probe.predict(test) == asked}
    marks |= {f"class_recall_{k}": found for k, found in class_recall(test, asked).items()}
    marks |= {f"view_recall_{k}": found for k, found in pair_recall(views, test[: len(views)]).items()}
    return Result(
        task=task.name,
        model=encoder.name,
        measures={name: Measure.of(found) for name, found in marks.items()},
        rank=effective_rank(test),
        width=test.shape[1],
        penalty=probe.penalty,
    )
