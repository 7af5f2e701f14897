"""Adapt a model to a domain, from raw records to two evaluations and a trained checkpoint; it knows no domain.

The steps are those of the paper's framework (section 3.3): domain samples in the unified formats, general samples
mixed in at ratio r, a few passes of training, the domain's own benchmarks. General ability is probed before and after,
since a gain that forgets everything else is no gain. Layout of the run folder::

    data/                 raw records, where the domain made them, as build.json says
    rows/                 the same as training rows, and what of them could not be used (``domains/_rows.py``)
    general/              the same of general data from original files, and all of it as one meta JSON (``general.py``)
    base/  adapted/       the evaluations before and after, as ``minivl eval`` writes them
    blind/  guess/        the domain's questions answered by the adapted model with grey for images, and without a model
    train/                the training run; ``train/best`` is the result
    answers.sqlite        every answer; seconds.json: what each step took
    adapt.json            settings, counts and seconds, written last

Every step leaves its result there, so the same call goes on where it was stopped. What can only fail late is tried
first: settings, splits, files and extras are looked at before a model is loaded. Data that are no longer those of a
training that has begun are refused before anything is written.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mini_internvl.adapt.general import FOLDER
from mini_internvl.adapt.plan import AdaptConfig, Plan, build_settings, make_plan, make_recipe, used_settings
from mini_internvl.data.rows import read_rows
from mini_internvl.domains import Domain
from mini_internvl.domains._rows import changed_data, convert
from mini_internvl.engine import Engine
from mini_internvl.engine.hub import base_folder
from mini_internvl.evaluate import AnswerCache, PredictCallbacks, evaluate, outputs, predict
from mini_internvl.evaluate.blind import Guesser
from mini_internvl.evaluate.model import load_evaluated
from mini_internvl.evaluate.questions import Questions, read_questions
from mini_internvl.evaluate.run import score
from mini_internvl.files import read_object, write_json
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import Recipe, SourceRecipe
from mini_internvl.records import Interrupted, Sample
from mini_internvl.train.data import Opener
from mini_internvl.train.initial import find_base, sample_processor
from mini_internvl.train.meter import Progress
from mini_internvl.train.run import run_recipe
from mini_internvl.train.run_folder import check_data, check_folder, has_begun

__all__ = ["AdaptConfig", "Callbacks", "Plan", "adapt", "geometric_mean", "make_plan"]

CONVERTING = 4  # processes that convert at most: one reads for all of them
TRIED = 8  # items of a benchmark that are scored without answers, to find what its scoring lacks before the work


@dataclass(kw_only=True)
class Callbacks:
    """What is called as the work goes on; each may be left out."""

    note: Callable[[str], None] = lambda line: None  # a line about what will be done or was found
    step: Callable[[str], None] = lambda title: None
    count: Callable[[int, int], None] = lambda done, total: None  # progress of a counted step
    train: Callable[[Progress], None] = lambda progress: None
    should_stop: Callable[[], bool] = lambda: False  # True stops at the next safe point of whatever is being done

    def counted(self, done: int, total: int) -> None:
        """Tell of progress, and stop where that was asked for."""
        self.count(done, total)
        if self.should_stop():
            raise Interrupted(f"stopped at {done} of {total}")


def adapt(config: AdaptConfig, callbacks: Callbacks | None = None) -> dict[str, Any]:
    """Run or continue an adaptation.

    Returns:
        The content of ``adapt.json``; scores and answers are in ``base`` and ``adapted``.

    Raises:
        ValueError: the domain, data or model cannot be used, or the folder holds another run.
        Interrupted: stopped by the callbacks; the same call goes on.
    """
    call = callbacks or Callbacks()
    plan = make_plan(config)
    for line in plan.lines:
        call.note(line)
    config.output.mkdir(parents=True, exist_ok=True)
    clock = Clock(config.output / "seconds.json")
    raw = _raw_data(config, plan.domain, call, clock)
    for line in plan.domain.about(raw) if plan.domain.about else ():
        call.note(line)
    kept = _converted(config, plan, raw, call, clock)
    tests = _tests(config, plan, raw)
    validation = [_as_trained(asked, plan) for asked in _validation(config, plan.domain, raw)]
    recipe = check_folder(make_recipe(config, plan, kept), config.output / "train", extend=config.extend)
    opener = Opener(workers=config.workers)
    process = sample_processor(find_base(recipe), recipe.stages[0])
    _check_data(config, recipe, lambda source: opener(source, process).fingerprint)
    base = _score({"base": tests}, config.model, config, call, clock)
    call.step("train")
    with clock.timed("train"):
        best = run_recipe(
            recipe,
            config.output / "train",
            probe=_probe(plan.base, validation) if validation else None,
            on_progress=call.train,
            should_stop=call.should_stop,
            workers=config.workers,
            opener=opener,
            extend=config.extend,
        )
    of_domain = [asked for asked in tests if asked.name not in plan.probe]
    _guess(of_domain, plan.domain, config, call)
    blind = [asked.blinded() for asked in of_domain]
    adapted = _score({"adapted": tests, "blind": blind}, str(best), config, call, clock)
    content = {
        "domain": plan.domain.name,
        "title": plan.domain.title,
        "command": config.command,
        **{"base": "base", "adapted": "adapted", "train": "train"},
        "checkpoint": str(best.relative_to(config.output)),
        "benchmarks": [asked.name for asked in of_domain],
        "probe": list(plan.probe),
        "validation": {_measured(asked): len(asked.items) for asked in validation},
        "model": base,
        "adapted_model": adapted,
        "settings": used_settings(config, plan, recipe),
        "data": {"path": str(raw), **kept},
        **_circumstances(clock),
    }
    write_json(config.output / "adapt.json", content)
    return content


class Clock:
    """Seconds of each step, kept over restarts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = read_object(path) if path.exists() else {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of a step, also when it is interrupted."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 1)
            write_json(self.path, self.seconds)


def _circumstances(clock: Clock) -> dict[str, Any]:
    """When and on what an adaptation was made, and how long its steps took."""
    return {
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": clock.seconds | {"total": round(sum(clock.seconds.values()), 1)},
        "versions": outputs.versions(),
        "machine": {"threads": torch.get_num_threads(), "processor": platform.processor() or platform.machine()},
    }


def _raw_data(config: AdaptConfig, domain: Domain, call: Callbacks, clock: Clock) -> Path:
    """The raw folder: the user's, or built by the domain."""
    if config.data is not None:
        return config.data
    assert domain.build is not None
    call.step("build")
    folder, file = config.output / "data", config.output / "build.json"
    settings = build_settings(domain) | dict(config.build) | {"seed": config.seed}
    with clock.timed("build"):
        if _fixed(config):
            before = read_object(file) if file.is_file() else settings
            if other := [name for name, value in settings.items() if before.get(name) != value]:
                told = ", ".join(f"{name} {before.get(name)} then, {settings[name]} now" for name in other)
                raise ValueError(changed_data(f"{config.domain} ({told})", config.output))
            if domain.changed and domain.changed(folder, **config.build, seed=config.seed, progress=call.counted):
                raise ValueError(changed_data(config.domain, config.output))
        write_json(file, settings)
        domain.build(folder, **config.build, seed=config.seed, progress=call.counted)
    return folder


def _fixed(config: AdaptConfig) -> bool:
    """Whether the data must be those that a training in the folder began with."""
    return not config.extend and has_begun(config.output / "train")


def _converted(config: AdaptConfig, plan: Plan, raw: Path, call: Callbacks, clock: Clock) -> dict[str, dict[str, Any]]:
    """The raw records as rows, split by split, and those of general data; what was kept of each split."""
    call.step("convert")
    how: dict[str, Any] = {
        "max_faults": config.max_faults,
        "fixed": config.output if _fixed(config) else None,
        "should_stop": call.should_stop,
        "workers": min(CONVERTING, os.cpu_count() or 1),
        "on_note": call.note,
        "on_progress": lambda records: call.count(records, 0),
    }
    with clock.timed("convert"):
        kept = convert(plan.domain, raw, config.output / "rows", **how)
    for split, found in kept.items():
        call.note(f"{split}: {found['rows']:,} rows" + (f", {found['faults']:,} unusable" if found["faults"] else ""))
    with clock.timed("convert"):
        plan.general.prepare(config.output / FOLDER, **how)
    return kept


def _check_data(config: AdaptConfig, recipe: Recipe, fingerprint: Callable[[SourceRecipe], str]) -> None:
    """Open what is trained on; RunFolderError where a run in the folder, even a finished one, began with other data."""
    (stage,) = recipe.stages
    named = {f"{stage.name}/{number}": source for number, source in enumerate(stage.data)}
    named |= {f"held out/{number}": source for number, source in enumerate(recipe.held_out)}
    data = {
        name: {"path": source.path or source.name, "fingerprint": fingerprint(source)} for name, source in named.items()
    }
    check_data(recipe, config.output / "train", data, extend=config.extend)


def _tests(config: AdaptConfig, plan: Plan, raw: Path) -> list[Questions]:
    """What is asked before and after: the domain's test splits, then the probe."""
    tests = [
        read_questions(name, benchmark, data=raw / use.folder, split=use.test)
        for name, (benchmark, use) in plan.domain.benchmarks.items()
        if use.test
    ]
    for name, benchmark in plan.probe.items():
        if hasattr(benchmark, "kinds"):
            kinds = [kind for kind in benchmark.MAIN if kind in benchmark.kinds()]
            tests.append(read_questions(name, benchmark, limit=config.probe_items, kinds=",".join(kinds)))
        else:
            split = next(split for split in benchmark.SPLITS if split not in getattr(benchmark, "UNSCORED", ()))
            given: dict[str, Any] = {"limit": config.probe_items, "seed": config.seed}
            tests.append(read_questions(name, benchmark, data=config.probe_data, split=split, **given))
    tests = [_as_trained(asked, plan) if asked.name in plan.domain.benchmarks else asked for asked in tests]
    for asked in tests:
        if not asked.items:
            raise ValueError(f"{asked.name}: the split {asked.split} in {asked.data} holds no questions")
        score(asked.benchmark, asked.items[:TRIED], [])
    return tests


def _as_trained(asked: Questions, plan: Plan) -> Questions:
    """The questions with the tile limit of the training where they leave it open."""
    limit = plan.recipe.max_tiles
    items = [replace(item, max_tiles=item.max_tiles or limit) for item in asked.items]
    more = {"tiles_setting": limit} if all(item.max_tiles is None for item in asked.items) else {}
    return replace(asked, items=items, more={**asked.more, **more})


def _validation(config: AdaptConfig, domain: Domain, raw: Path) -> list[Questions]:
    """What is asked while training, drawn from all validation questions: files are often in the order of their classes
    or images. A benchmark without validation questions is left out."""
    every = [
        read_questions(name, benchmark, data=raw / use.folder, split=use.validation)
        for name, (benchmark, use) in domain.benchmarks.items()
        if use.validation
    ]
    return [
        replace(asked, items=outputs.sample(asked.benchmark, asked.items, config.validation_items, config.seed))
        for asked in every
        if asked.items
    ]


def _score(
    wanted: Mapping[str, Sequence[Questions]], model: str | None, config: AdaptConfig, call: Callbacks, clock: Clock
) -> dict[str, Any]:
    """Evaluate a checkpoint on label -> questions into ``output/label``; kept answers of the same weights count.

    Returns what names the model in its score files. Its memory is let go of, so that training finds it free.
    """
    with AnswerCache(config.answers or config.output / "answers.sqlite") as cache:
        evaluated = load_evaluated(model, device=config.device)
        for label, tests in wanted.items():
            output, blind = config.output / label, any(asked.blind for asked in tests)
            outputs.check_model(output, evaluated.facts, blind=blind)
            for asked in tests:
                call.step(f"score {label}: {asked.name}")
                callbacks = PredictCallbacks(count=call.count, should_stop=call.should_stop)
                began = time.monotonic()
                with clock.timed(f"score {label}"):
                    predictions = predict(
                        evaluated.engine, asked.items, cache=cache, model=evaluated.key, callbacks=callbacks
                    )
                    folder = asked.write(output, predictions, asked.result(predictions, evaluated.facts))
                timing = {"split": asked.split, "seconds": round(time.monotonic() - began, 2)}
                write_json(folder / outputs.TIMING, timing)
        facts = dict(evaluated.facts)
    del evaluated
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return facts


def _guess(tests: Sequence[Questions], domain: Domain, config: AdaptConfig, call: Callbacks) -> None:
    """Score what can be guessed from the training rows, as a model's answers are."""
    call.step("score guess")
    rows = read_rows(config.output / "rows" / f"{domain.splits[0]}.jsonl")
    guesser = Guesser(sample for sample in rows if isinstance(sample, Sample))
    facts = {"name": "guess", "path": "", "sha256": ""}
    for asked in tests:
        predictions = guesser.predictions(asked.items)
        asked.write(config.output / "guess", predictions, asked.result(predictions, facts))


def _probe(base: Path, validation: Sequence[Questions]) -> Callable[[InternVL], dict[str, float]]:
    """Measures each benchmark's primary metric on validation questions; their geometric mean picks the best."""

    def probe(model: InternVL) -> dict[str, float]:
        engine = Engine(model, base_folder(base))
        measured, shares = {}, []
        for asked in validation:
            found, _ = evaluate(engine, asked.benchmark, asked.items)
            metric, largest = outputs.primary(asked.benchmark, found.values)
            if metric in found.values:  # else no question of these few counts towards it, or its judge is missing
                measured[f"{asked.name} {metric}"] = found.values[metric]
                shares.append(found.values[metric] / largest)
        return {**measured, "score": geometric_mean(shares)} if shares else measured

    return probe


def _measured(asked: Questions) -> str:
    """What the training log calls a benchmark's validation metric."""
    unanswered = score(asked.benchmark, asked.items, [])
    return f"{asked.name} {outputs.primary(asked.benchmark, unanswered.values)[0]}"


def geometric_mean(shares: Iterable[float]) -> float:
    """One number for several primary metrics, each a share of its maximum: their geometric mean, 0.01 to about 1.

    Relative gains weigh alike whatever the unit: a CIDEr of 150 is 15 % of what it may reach and far better than 30,
    which a mean of shares drowns in the noise of a percentage of few questions. A hundredth is added to each share, so
    that a zero does not hide the others.
    """
    return math.exp(statistics.fmean(math.log(max(0.0, share) + 0.01) for share in shares))
