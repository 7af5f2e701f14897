"""Adapt a model to a domain, from raw records to two evaluations and a trained checkpoint; it knows no domain.

The steps are those of the paper's framework (section 3.3): domain samples in the unified formats, general samples
mixed in at ratio r, a few passes of training, the domain's own benchmarks. General ability is probed before and after,
since a gain that forgets everything else is no gain. Layout of the run folder::

    data/                 raw records, where the domain made them
    rows/                 the same as training rows, and what of them could not be used (``domains/_rows.py``)
    base/  adapted/       the evaluations before and after, as ``minivl eval`` writes them
    train/                the training run; ``train/best`` is the result
    answers.sqlite        every answer; seconds.json: what each step took
    adapt.json            settings, counts and seconds, written last

Every step leaves its result there, so the same call goes on where it was stopped. What can only fail late is tried
first: settings, splits, files and extras are looked at before a model is loaded.
"""

from __future__ import annotations

import functools
import gc
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mini_internvl import plugins, synth
from mini_internvl.domains import AdaptRecipe, Domain, load_domain
from mini_internvl.domains._rows import convert
from mini_internvl.engine import Engine
from mini_internvl.engine.hub import NANO, base_folder, resolve
from mini_internvl.evaluate import AnswerCache, PredictCallbacks, evaluate, outputs, predict
from mini_internvl.evaluate.model import load_evaluated
from mini_internvl.evaluate.questions import Questions, read_questions
from mini_internvl.evaluate.run import score
from mini_internvl.files import read_object, write_json
from mini_internvl.model.checkpoint import read_config
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import PARTS, LoraRecipe, Recipe, SourceRecipe
from mini_internvl.records import Interrupted
from mini_internvl.train.data import open_checked
from mini_internvl.train.loop import Progress
from mini_internvl.train.run import check_folder, run_recipe

DRAWN = "synth"
"""What ``general`` and ``probe`` call the drawn images, whose training data nano's came from."""
DRAWN_SHARES = {"shapes": 3.0, "words": 3.0, "charts": 4.0, "text": 1.0}
"""Drawn general samples that are mixed in, with their shares."""
NONE = "none"
RECIPE_FIELDS = ("epochs", "lr", "ratio", "batch_size", "max_tiles", "max_length", "loss_reduction")
"""Settings of an adaptation that replace those of the domain's recipe."""
TRIED = 8
"""Items of a benchmark that are scored without answers, to find what its scoring lacks before the work."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Settings of one adaptation; ``None`` leaves one to the domain's recipe for the model."""

    domain: str
    """Name of a domain, or path of a domain file."""
    output: Path
    """Run folder."""
    model: str | None = None
    """Starting checkpoint; ``None`` for nano."""
    data: Path | None = None
    """Folder of raw records; ``None`` lets the domain build its own in the run folder."""
    build: Mapping[str, int] = field(default_factory=dict)
    """Numbers for the domain's ``build``."""
    max_faults: float = 0.01
    """Share of the records that may be unusable; more stop the run."""
    epochs: float | None = None
    """Passes over the training split."""
    lr: float | None = None
    """Peak learning rate."""
    ratio: float | None = None
    """General to domain samples, the paper's r."""
    batch_size: int | None = None
    """Samples per optimiser step."""
    max_tiles: int | None = None
    """Most tiles of a sample that sets no limit itself."""
    max_length: int | None = None
    """Longest sample in tokens."""
    loss_reduction: str | None = None
    """How a token weighs: token, square or sample."""
    lora: int | None = None
    """Rank of the adapters that train instead of the weights; ``None`` trains the weights."""
    freeze_vision: bool = False
    """Whether the encoder stays as it is."""
    general: str | None = None
    """General training data: a meta file or a file of rows, ``synth`` or ``none``; ``None`` is synth for nano only."""
    probe: Sequence[str] | None = None
    """Benchmarks of general ability; ``None`` is synth for nano and nothing for other models."""
    probe_data: Path | None = None
    """Folder of their official files."""
    probe_items: int = 100
    """Questions of each of them (synth: of each kind)."""
    validation_items: int = 48
    """Validation questions per benchmark of the metric measured while training."""
    device: str = "auto"
    """Where the model is scored and trained."""
    precision: str = "auto"
    """Arithmetic of the training: ``fp32``, ``bf16``, or ``auto`` (bf16 where the processor is fast at it)."""
    workers: int = 1
    """Processes that prepare batches."""
    seed: int = 0
    """Seed of the data, the mixing and the training."""
    command: str = ""
    """The command line, for the report."""


@dataclass(kw_only=True)
class Callbacks:
    """What is called as the work goes on; each may be left out."""

    note: Callable[[str], None] = lambda line: None
    """A line about what will be done or was found."""
    step: Callable[[str], None] = lambda title: None
    """A step begins."""
    count: Callable[[int, int], None] = lambda done, total: None
    """Progress of a counted step."""
    train: Callable[[Progress], None] = lambda progress: None
    """Progress of training."""
    should_stop: Callable[[], bool] = lambda: False
    """True stops at the next safe point of whatever is being done."""

    def counted(self, done: int, total: int) -> None:
        """Tell of progress, and stop where that was asked for."""
        self.count(done, total)
        if self.should_stop():
            raise Interrupted(f"stopped at {done} of {total}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is settled before the work begins."""

    domain: Domain
    """The domain file."""
    base: Path
    """Folder of the starting checkpoint."""
    recipe: AdaptRecipe
    """Settings of the training."""
    general: tuple[SourceRecipe, ...]
    """General training data; the weights sum to the ratio."""
    probe: Mapping[str, ModuleType]
    """Benchmarks of general ability, by name."""
    lines: Sequence[str]
    """The plan in words."""


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
    call.step("convert")
    with clock.timed("convert"):
        kept = convert(
            plan.domain,
            raw,
            config.output / "rows",
            max_faults=config.max_faults,
            should_stop=call.should_stop,
        )
    for split, found in kept.items():
        call.note(f"{split}: {found['rows']:,} rows" + (f", {found['faults']:,} unusable" if found["faults"] else ""))
    tests = _tests(config, plan, raw)
    validation = _validation(config, plan.domain, raw)
    recipe = check_folder(make_recipe(config, plan, kept), config.output / "train")
    opener = functools.cache(open_checked)
    for source in (*recipe.stages[0].data, *recipe.held_out):
        opener(source)
    base = _score("base", config.model, tests, config, call, clock)
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
        )
    adapted = _score("adapted", str(best), tests, config, call, clock)
    content = {
        "domain": plan.domain.name,
        "title": plan.domain.title,
        "command": config.command,
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
        "base": "base",
        "adapted": "adapted",
        "train": "train",
        "checkpoint": str(best.relative_to(config.output)),
        "benchmarks": [asked.name for asked in tests if asked.name not in plan.probe],
        "probe": list(plan.probe),
        "validation": {_logged(asked): len(asked.items) for asked in validation},
        "model": base,
        "adapted_model": adapted,
        "settings": _settings(config, plan, recipe),
        "data": {"path": str(raw), **kept},
        "seconds": clock.seconds | {"total": round(sum(clock.seconds.values()), 1)},
        "versions": outputs.versions(),
        "machine": {"threads": torch.get_num_threads(), "processor": platform.processor() or platform.machine()},
    }
    write_json(config.output / "adapt.json", content)
    return content


def make_plan(config: AdaptConfig) -> Plan:
    """Settle model, settings, general data and probe, and check them.

    Raises:
        ValueError: something is unknown, missing or out of range; the message names it and the fix.
    """
    domain = load_domain(config.domain)
    if config.data is None and domain.build is None:
        raise ValueError(f"the domain {domain.name} cannot make its own records; give their folder with --data")
    if config.data is not None and not config.data.is_dir():
        raise ValueError(f"{config.data} is no folder; --data takes the folder of the raw records")
    base = resolve(config.model)
    nano = read_config(base_folder(base)) == read_config(NANO)
    recipe = domain.nano_recipe if nano else domain.recipe
    given = {name: getattr(config, name) for name in RECIPE_FIELDS if getattr(config, name) is not None}
    if config.lora is not None and "lr" in given:
        given["lora_lr"] = given["lr"]
    recipe = replace(recipe, **given)
    general = config.general or (DRAWN if nano else NONE)
    if general == NONE and recipe.ratio:
        if config.ratio:
            raise ValueError(f"ratio {config.ratio:g} mixes general data in; say which with --general")
        recipe = replace(recipe, ratio=0.0)
    sources, told = _general(general, recipe.ratio, config.seed)
    names = list(config.probe) if config.probe is not None else [DRAWN] if nano else []
    probe = {plugins.short_name(name): plugins.find("benchmarks", name) for name in names if name != NONE}
    if config.probe_data is None and any(name != DRAWN for name in probe):
        name = next(name for name in probe if name != DRAWN)
        raise ValueError(f"the probe {name} reads its questions from a folder; give it with --probe-data")
    for name in probe:
        if name in domain.benchmarks:
            raise ValueError(f"{name} scores the domain already; it cannot be the probe of general ability too")
    trained = "adapters of rank " + str(config.lora) if config.lora else "all weights"
    lines = [
        f"{config.model or 'nano'}, adapted to {domain.title}: {trained}{', encoder frozen' * config.freeze_vision}",
        f"epochs {recipe.epochs:g}, lr {recipe.lora_lr if config.lora else recipe.lr:g}, batches of "
        f"{recipe.batch_size}, at most {recipe.max_tiles} tiles and {recipe.max_length:,} tokens, loss by "
        f"{recipe.loss_reduction}" + (" (settings for nano)" if nano else ""),
        told,
        f"general ability is probed with {', '.join(probe)}"
        if probe
        else "general ability is not probed; name benchmarks with --probe to see what is forgotten",
    ]
    return Plan(domain=domain, base=base, recipe=recipe, general=sources, probe=probe, lines=lines)


def _general(general: str, ratio: float, seed: int) -> tuple[tuple[SourceRecipe, ...], str]:
    """The sources of general samples, and a line about them."""
    if general == NONE or not ratio:
        return (), "no general data: more is forgotten without it; give some with --general"
    if general != DRAWN:
        if not Path(general).is_file():
            raise ValueError(f"the general data {general} is no file; --general takes a meta file or a file of rows")
        return (SourceRecipe(kind="rows", path=general, weight=ratio),), f"general data: {general}, {ratio:g} to 1"
    total = sum(DRAWN_SHARES.values())
    for kind in DRAWN_SHARES:
        if reason := synth.missing(kind):
            raise ValueError(f"{reason}; or leave the drawn images out with --general none")
    sources = [
        SourceRecipe(kind="synth", name=kind, weight=ratio * share / total, seed=7 + seed)
        for kind, share in DRAWN_SHARES.items()
    ]
    return tuple(sources), f"general data: drawn images, {ratio:g} to 1"


def make_recipe(config: AdaptConfig, plan: Plan, kept: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The training recipe: one stage on the domain's rows, with general samples mixed in."""
    rows = {split: str(config.output / "rows" / f"{split}.jsonl") for split, found in kept.items() if found["rows"]}
    first, *rest = kept
    parts = tuple(part for part in PARTS if not (part == "vision" and config.freeze_vision))
    if config.lora is not None:
        parts = tuple(part for part in parts if part != "projector")
    source = SourceRecipe(kind="rows", path=rows[first])
    stage = plan.recipe.stage(
        (source, *plan.general), rows=kept[first]["rows"], train=parts, lora=config.lora is not None
    )
    return Recipe(
        name=f"adapt-{plan.domain.name}",
        model=str(plan.base),
        stages=(stage,),
        precision=config.precision,
        device=config.device,
        seed=config.seed,
        held_out=tuple(SourceRecipe(kind="rows", path=rows[split]) for split in rest if split in rows),
        held_out_samples=32,
        eval_every=-(-stage.steps // 4),  # the last measurement is of the last step
        save_every=max(1, stage.steps // 8),
        lora=None if config.lora is None else LoraRecipe(rank=config.lora, parts=parts),
    )


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


def _raw_data(config: AdaptConfig, domain: Domain, call: Callbacks, clock: Clock) -> Path:
    """The raw folder: the user's, or built by the domain."""
    if config.data is not None:
        return config.data
    assert domain.build is not None
    call.step("build")
    folder = config.output / "data"
    with clock.timed("build"):
        domain.build(folder, **config.build, seed=config.seed, progress=call.counted)
    return folder


def _tests(config: AdaptConfig, plan: Plan, raw: Path) -> list[Questions]:
    """What is asked before and after: the domain's test splits, then the probe."""
    tests = [
        read_questions(name, plan.domain.modules[name], data=raw / use.folder, split=use.test)
        for name, use in plan.domain.benchmarks.items()
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
    for asked in tests:
        if not asked.items:
            raise ValueError(f"{asked.name}: the split {asked.split} in {asked.data} holds no questions")
        score(asked.benchmark, asked.items[:TRIED], [])
    return tests


def _validation(config: AdaptConfig, domain: Domain, raw: Path) -> list[Questions]:
    """What is asked while training; a benchmark without validation questions is left out."""
    every = [
        read_questions(name, domain.modules[name], data=raw / use.folder, split=use.validation)
        for name, use in domain.benchmarks.items()
        if use.validation
    ]
    return [replace(asked, items=asked.items[: config.validation_items]) for asked in every if asked.items]


def _score(
    label: str, model: str | None, tests: Sequence[Questions], config: AdaptConfig, call: Callbacks, clock: Clock
) -> dict[str, Any]:
    """Evaluate a checkpoint into ``output/label``; kept answers of the same weights are used again.

    The model is let go of afterwards, so that training finds the memory free.

    Returns:
        What names the model in its score files.
    """
    output = config.output / label
    with clock.timed(f"score {label}"), AnswerCache(config.output / "answers.sqlite") as cache:
        evaluated = load_evaluated(model, device=config.device)
        outputs.check_model(output, evaluated.facts)
        for asked in tests:
            call.step(f"score {label}: {asked.name}")
            began = time.monotonic()
            callbacks = PredictCallbacks(count=call.count, should_stop=call.should_stop)
            predictions = predict(evaluated.engine, asked.items, cache=cache, model=evaluated.key, callbacks=callbacks)
            folder = asked.write(output, predictions, asked.result(predictions, evaluated.facts))
            timing = {"split": asked.split, "seconds": round(time.monotonic() - began, 2)}
            write_json(folder / outputs.TIMING, timing)
        facts = dict(evaluated.facts)
    del evaluated
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return facts


def _probe(base: Path, validation: Sequence[Questions]) -> Callable[[InternVL], dict[str, float]]:
    """Measures each benchmark's primary metric on validation questions; their geometric mean picks the best."""

    def probe(model: InternVL) -> dict[str, float]:
        engine = Engine(model, base_folder(base))
        measured, shares = {}, []
        for asked in validation:
            found, _ = evaluate(engine, asked.benchmark, asked.items)
            measured[_logged(asked)] = value = found.values[asked.benchmark.PRIMARY_METRIC]
            shares.append(value / getattr(asked.benchmark, "PRIMARY_METRIC_MAX", 100.0))
        return {**measured, "score": geometric_mean(shares)}

    return probe


def _logged(asked: Questions) -> str:
    """What the training log calls a benchmark's validation metric."""
    return f"{asked.name} {asked.benchmark.PRIMARY_METRIC}"


def geometric_mean(shares: Iterable[float]) -> float:
    """One number for several primary metrics, each a share of its maximum: their geometric mean, 0.01 to about 1.

    Relative gains weigh alike whatever the unit: a CIDEr of 150 is 15 % of what it may reach and far better than 30,
    which a mean of shares drowns in the noise of a percentage of few questions. A hundredth is added to each share, so
    that a zero does not hide the others.
    """
    return math.exp(statistics.fmean(math.log(max(0.0, share) + 0.01) for share in shares))


def _settings(config: AdaptConfig, plan: Plan, recipe: Recipe) -> dict[str, Any]:
    """The settings that were used, flat, for the report."""
    return {
        **asdict(plan.recipe),
        "steps": recipe.stages[0].steps,
        "trains": list(recipe.stages[0].train),
        "lora": config.lora or 0,
        "general": [source.path or source.name for source in plan.general],
        "device": config.device,
        "precision": config.precision,
        "seed": config.seed,
    }
