"""``minivl merge --sweep``: weights between a base and what was trained from it, scored at several alphas.

The folder of a sweep::

    alpha-0.25/      evaluations as ``minivl eval`` writes them, one folder for each alpha
    answers.sqlite   every answer (an adaptation's own file where one is swept)
    sweep.json  sweep.svg
    best/            the best alpha's checkpoint, where it is neither end

An alpha's weights are written there, evaluated and removed. The same command goes on where it was stopped.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mini_internvl import plugins, terminal
from mini_internvl.commands._interpolate import Ends, read_ends
from mini_internvl.commands._trade_off import RULE, Point, best_of, mean, picture, print_table
from mini_internvl.engine.hub import NANO
from mini_internvl.evaluate import AnswerCache, PredictCallbacks, outputs, predict
from mini_internvl.evaluate.model import EvaluatedModel, load_evaluated
from mini_internvl.evaluate.questions import Questions, read_questions
from mini_internvl.files import FileError, read_object, write_json, write_text
from mini_internvl.model.adapter import is_adapter
from mini_internvl.model.interpolation import check_alpha
from mini_internvl.report.folders import ADAPTATION

RESULT, PICTURE, BEST, CACHE = "sweep.json", "sweep.svg", "best", "answers.sqlite"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is merged: a checkpoint or adapter, its base, and where an adaptation made it, that folder and its facts."""

    folder: str
    base: str | None
    run: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def find_trained(name: str, base: str | None) -> Trained:
    """A checkpoint, adapter or hub id as it is; the folder of an adaptation as its checkpoint and base."""
    path = Path(name) / ADAPTATION
    if not path.is_file():
        return Trained(folder=name, base=base)
    facts = read_object(path)
    try:
        folder, start = str(Path(name) / facts["checkpoint"]), str(facts["model"]["path"])
    except (KeyError, TypeError):
        raise FileError(f"{path} names no checkpoint or model; run the adaptation again") from None
    if base is None and not is_adapter(folder):  # an adapter names its base itself
        base = str(NANO) if start == "nano" else start
    return Trained(folder=folder, base=base, run=Path(name), facts=facts)


def parse_alphas(text: str) -> list[float]:
    """ "0,0.5,1" -> numbers, ascending, each once; ValueError names one that is none."""
    try:
        alphas = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f'"{text}" is no list of numbers; give alphas such as 0,0.25,0.5,0.75,1') from None
    for alpha in alphas:
        check_alpha(alpha)
    return alphas


def read_asked(names: Sequence[str], given: Mapping[str, Any]) -> list[Questions]:
    """The first split of each benchmark, or drawn items; ``given`` are options of :func:`read_questions`."""
    asked = []
    for name in names:
        benchmark = plugins.find("benchmarks", name)
        if given.get("data") is None and not hasattr(benchmark, "kinds"):
            raise ValueError(f"{name} reads its questions from a folder; give it with --data")
        split = next(split for split in benchmark.SPLITS if split not in getattr(benchmark, "UNSCORED", ()))
        asked.append(read_questions(plugins.short_name(name), benchmark, **{"split": split, **given}))
    return asked


def adaptation_questions(trained: Trained, key: str) -> list[Questions]:
    """The questions of an adaptation's ``benchmarks`` or ``probe``, as its score files say that they were asked."""
    assert trained.run is not None
    asked = []
    for name in trained.facts.get(key, ()):
        path = trained.run / "adapted" / name / outputs.SCORE
        facts = read_object(path)
        benchmark = plugins.find("benchmarks", outputs.benchmark_name(path, facts))
        asked.append(_asked_again(name, benchmark, facts))
        if asked[-1].facts({})["prompt_sha256"] != facts["prompt_sha256"]:
            raise ValueError(
                f"{name}: the questions are not those of {path}; run the adaptation again, or name --domain"
            )
    return asked


def _asked_again(name: str, benchmark: ModuleType, facts: Mapping[str, Any]) -> Questions:
    if "names" in facts:  # drawn
        drawn = {"limit": facts["count"], "seed": facts["seed"], "kinds": ",".join(facts["names"])}
        return read_questions(name, benchmark, split=facts["split"], **drawn)
    data = facts["data"]["path"]
    chosen = {"limit": facts["limit"], "seed": facts["seed"], "max_tiles": facts.get("tiles_setting")}
    return read_questions(name, benchmark, data=None if data is None else Path(data), split=facts["split"], **chosen)


def sweep(
    trained: Trained,
    output: Path,
    alphas: Sequence[float],
    *,
    domain: Sequence[Questions],
    general: Sequence[Questions],
    device: str = "auto",
    dtype: str = "auto",
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Score every alpha, write table and picture, and the checkpoint of the best; returns the content of sweep.json.

    Raises:
        ValueError: ends or questions that cannot be used, or a folder that holds something else.
        Interrupted: stopped; the same call goes on.
    """
    if output.exists() and any(output.iterdir()) and not any(output.glob("alpha-*")):
        raise FileError(f"{output} exists already and holds no sweep; give a new folder")
    both = [asked.name for asked in general if asked.name in {other.name for other in domain}]
    if both:
        raise ValueError(f"{both[0]} scores the domain already; it cannot be one of general ability too")
    for asked in (*domain, *general):
        if not asked.items:
            raise ValueError(f"{asked.name}: the split {asked.split} in {asked.data} holds no questions")
    ends = read_ends(trained.folder, trained.base)
    points = []
    with AnswerCache((trained.run or output) / CACHE) as cache:
        for alpha in alphas:
            with _weights(ends, alpha, output) as folder:
                evaluated = load_evaluated(str(folder), device=device, dtype=dtype)
                facts = {**evaluated.facts, "name": f"alpha {alpha:g}", "path": str(ends.trained), "alpha": alpha}
                evaluated = replace(evaluated, facts=facts)
                values = {
                    asked.name: _score(asked, evaluated, output / f"alpha-{alpha:g}", cache, should_stop)
                    for asked in (*domain, *general)
                }
                del evaluated
                gc.collect()
            points.append(_point(alpha, values, domain, general))
    best = best_of(points)
    content = _content(ends, points, best, domain, general, output)
    if best.setting in (0, 1):
        shutil.rmtree(output / BEST, ignore_errors=True)  # of an earlier sweep with other alphas
    else:
        ends.write(best.setting, output / BEST)
    write_json(output / RESULT, content)
    title = "Weights between base (0) and trained (1)"
    write_text(output / PICTURE, picture(points, best, title=title, setting="alpha"))
    return content


@contextmanager
def _weights(ends: Ends, alpha: float, output: Path) -> Iterator[Path]:
    """The folder of a checkpoint at ``alpha``: an end itself, whose answers may be known, or one for a while."""
    if alpha in (0, 1):
        yield ends.trained if alpha else ends.base
        return
    folder = output / f"alpha-{alpha:g}" / "weights"
    ends.write(alpha, folder, terminal.ProgressBar(f"alpha {alpha:g}: weights"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _score(
    asked: Questions, evaluated: EvaluatedModel, output: Path, cache: AnswerCache, should_stop: Callable[[], bool]
) -> float:
    """Ask a benchmark, write answers and score; returns the primary metric's value."""
    bar = terminal.ProgressBar(f"{output.name}: {asked.name}", unit="items")
    callbacks = PredictCallbacks(count=bar, should_stop=should_stop)
    try:
        predictions = predict(evaluated.engine, asked.items, cache=cache, model=evaluated.key, callbacks=callbacks)
    finally:
        terminal.close()
    result = asked.result(predictions, evaluated.facts)
    asked.write(output, predictions, result)
    if result["primary_value"] is None:
        raise ValueError(f"{asked.name} has no {result['primary_metric']} without its judge; leave it out of the sweep")
    return float(result["primary_value"])


def _point(
    alpha: float, values: Mapping[str, float], domain: Sequence[Questions], general: Sequence[Questions]
) -> Point:
    of_domain, of_general = (
        {asked.name: getattr(asked.benchmark, "PRIMARY_METRIC_MAX", 100.0) for asked in group}
        for group in (domain, general)
    )
    learned = mean(values, of_domain)
    assert learned is not None, "a sweep has a benchmark of its domain"
    return Point(setting=alpha, values=values, domain=learned, general=mean(values, of_general))


def _content(
    ends: Ends,
    points: Sequence[Point],
    best: Point,
    domain: Sequence[Questions],
    general: Sequence[Questions],
    output: Path,
) -> dict[str, Any]:
    place = {0.0: str(ends.base), 1.0: str(ends.trained)}.get(best.setting, str(output / BEST))
    return {
        "base": str(ends.base),
        "trained": str(ends.trained),
        "domain": {asked.name: [asked.split, len(asked.items)] for asked in domain},
        "general": {asked.name: [asked.split, len(asked.items)] for asked in general},
        "metrics": {asked.name: asked.benchmark.PRIMARY_METRIC for asked in (*domain, *general)},
        "points": [point.facts("alpha") for point in points],
        "rule": RULE,
        "best": {"alpha": best.setting, "checkpoint": place},
        "picture": str(output / PICTURE),
    }


def print_sweep(content: Mapping[str, Any]) -> None:
    """One table: a line for each alpha, a column for each benchmark; then the best one and why."""
    points = [
        Point(setting=one["alpha"], values=one["values"], domain=one["domain"], general=one["general"])
        for one in content["points"]
    ]
    title = f"{content['trained']} towards {content['base']}"
    print_table(title, "alpha", points, best_of(points), content["metrics"])
