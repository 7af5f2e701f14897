"""Adapt a model to a domain, from raw records to a report: score, train, score again, and show what it cost.

The steps are those of the paper's framework (section 3.3): domain samples in the unified formats, general samples
mixed in at ratio r, full-parameter training for a few passes, the domain's own benchmarks. General ability is probed
before and after, since a gain that forgets everything else is no gain. Every step leaves its result in the run folder,
so the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import mini_internvl
from mini_internvl import plugins, synth
from mini_internvl.benchmarks import synth as general
from mini_internvl.engine import Engine, load
from mini_internvl.engine.engine import home, resolve
from mini_internvl.evaluate import AnswerCache, evaluate, outputs
from mini_internvl.evaluate import Listener as Asking
from mini_internvl.evaluate.keys import file_hash
from mini_internvl.inputs.messages import image_parts, question
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import Recipe, RecipeError, SourceRecipe, StageRecipe, to_dict
from mini_internvl.records import Item, Prediction, Score
from mini_internvl.train.meter import Progress
from mini_internvl.train.run import run_recipe

GENERAL = {"shapes": 3.0, "words": 3.0, "charts": 4.0, "text": 1.0}
"""Drawn general samples that are mixed in, with their shares."""
SHOWN_CLIPS = 12


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Settings of one adaptation."""

    domain: str
    """Name of the domain file."""
    output: Path
    """Run folder."""
    model: str | None = None
    """Starting checkpoint; ``None`` for nano."""
    data: Path | None = None
    """Folder of raw records; ``None`` lets the domain build its own in the run folder."""
    clips: Mapping[str, int] = field(default_factory=dict)
    """Samples per split that a built domain makes; missing ones from the domain's recipe."""
    epochs: float | None = None
    """Passes over the domain's training split; ``None`` takes the domain's suggestion."""
    lr: float | None = None
    """Peak learning rate; ``None`` takes the domain's suggestion."""
    ratio: float | None = None
    """General to domain samples (the paper's r); ``None`` takes the domain's suggestion, 0 mixes nothing in."""
    general_items: int = 100
    """Questions per kind of the general probe."""
    validation_items: int = 48
    """Validation questions per benchmark of the metric measured while training."""
    precision: str = "auto"
    """Arithmetic of the training: ``fp32``, ``bf16``, or ``auto`` (bf16 where the processor is fast at it)."""
    seed: int = 0
    """Seed of the data, the mixing and the training."""
    command: str = ""
    """The command line, for the report."""


@dataclass(kw_only=True)
class Listener:
    """Whom to tell; every callback may be left out."""

    step: Callable[[str], None] = lambda title: None
    """A step begins."""
    count: Callable[[int, int], None] = lambda done, total: None
    """Progress of a counted step."""
    train: Callable[[Progress], None] = lambda progress: None
    """Progress of training."""
    should_stop: Callable[[], bool] = lambda: False
    """True stops training after the present step."""


def adapt(config: AdaptConfig, listener: Listener | None = None) -> dict[str, Any]:
    """Run or continue an adaptation.

    Returns:
        The content of ``adapt.json``, from which report and table are made.

    Raises:
        ValueError: the domain, data or model cannot be used, or the folder holds another run.
        Interrupted: stopped by the listener; the same call goes on.
    """
    listener = listener or Listener()
    domain = plugins.find("domains", config.domain)
    benchmarks = {name: plugins.find("benchmarks", name) for name in domain.BENCHMARKS}
    config.output.mkdir(parents=True, exist_ok=True)
    clock = Clock(config.output / "seconds.json")
    base_folder = resolve(config.model)
    data = _data(config, domain, listener, clock)
    engine = load(base_folder, dtype="float32")
    parameters = sum(p.numel() for p in engine.model.parameters())
    items = {name: list(benchmark.items(data, "test")) for name, benchmark in benchmarks.items()}
    probe_items = list(general.items(names=_probed(), count=config.general_items))
    questions = {**items, "general": probe_items}
    modules = {**benchmarks, "general": general}
    base = _score("base", engine, base_folder, modules, questions, config, listener, clock)
    recipe = make_recipe(config, domain, base_folder, data)
    listener.step("adapt")
    with clock.timed("adapt"):
        best = run_recipe(
            recipe,
            config.output / "train",
            probe=_validation_probe(config, benchmarks, data, base_folder),
            on_progress=listener.train,
            should_stop=listener.should_stop,
        )
    engine = load(best, dtype="float32")
    adapted = _score("adapted", engine, best, modules, questions, config, listener, clock)
    result = _result(config, domain, benchmarks, data, base_folder, recipe, items, base, adapted)
    result["model"]["parameters"] = parameters
    result["seconds"] = clock.seconds | {"total": round(sum(clock.seconds.values()), 1)}
    _write_json(config.output / "adapt.json", result)
    return result


def make_recipe(config: AdaptConfig, domain: ModuleType, base: Path, data: Path) -> Recipe:
    """The training recipe of an adaptation: one stage, all parts, domain and general samples mixed."""
    suggested = domain.RECIPE
    ratio = suggested["general_ratio"] if config.ratio is None else config.ratio
    if ratio < 0:
        raise RecipeError(f"ratio is {ratio}; it must be 0 or above")
    epochs = config.epochs or suggested["epochs"]
    domain_samples = sum(1 for _ in domain.convert(data, "train"))
    sources = [SourceRecipe(kind="domain", name=config.domain, path=str(data), weight=1.0)]
    total = sum(GENERAL.values())
    if ratio:
        sources += [
            SourceRecipe(kind="synth", name=kind, weight=ratio * share / total, seed=7 + config.seed)
            for kind, share in GENERAL.items()
        ]
    batch = suggested["batch_size"]
    stage = StageRecipe(
        name="adapt",
        data=tuple(sources),
        steps=max(1, round(epochs * domain_samples * (1 + ratio) / batch)),
        lr=config.lr or suggested["lr"],
        weight_decay=suggested["weight_decay"],
        warmup_ratio=suggested["warmup_ratio"],
        batch_size=batch,
        micro_batch=min(8, batch),
        max_tiles=synth.MAX_TILES,
    )
    return Recipe(
        name=f"adapt-{config.domain}",
        model=str(base),
        stages=(stage,),
        precision=config.precision,
        seed=config.seed,
        held_out=(SourceRecipe(kind="domain", name=config.domain, path=str(data), split="validation"),),
        held_out_samples=32,
        eval_every=max(1, stage.steps // 4),
        save_every=max(1, stage.steps // 8),
    )


class Clock:
    """Seconds of each finished step, kept over restarts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @contextmanager
    def timed(self, name: str) -> Any:
        """Add the time of a step, also when it is interrupted."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 1)
            _write_json(self.path, self.seconds)


def _data(config: AdaptConfig, domain: ModuleType, listener: Listener, clock: Clock) -> Path:
    """The raw folder: the user's, or built by the domain."""
    if config.data is not None:
        return config.data
    if not hasattr(domain, "build"):
        raise ValueError(f"the domain {config.domain} cannot make its own records; give their folder with --data")
    listener.step("data")
    folder = config.output / "data"
    with clock.timed("data"):
        counts = {**domain.RECIPE["clips"], **config.clips}
        domain.build(folder, **counts, seed=config.seed, progress=listener.count)
    return folder


def _probed() -> list[str]:
    return [kind for kind in general.MAIN if synth.missing(kind) is None]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores and answers of one model."""

    scores: dict[str, Score]
    """Benchmark name -> score; ``general`` is the probe."""
    predictions: dict[str, list[Prediction]]
    """Benchmark name -> answers in the items' order."""
    sha256: str
    """Hash of the weights."""


def _score(
    label: str,
    engine: Engine,
    folder: Path,
    modules: Mapping[str, ModuleType],
    questions: Mapping[str, Sequence[Item]],
    config: AdaptConfig,
    listener: Listener,
    clock: Clock,
) -> Scored:
    """Score one model on every set of questions; kept answers of the same weights are used again."""
    sha = file_hash(*sorted(folder.glob("*.safetensors")))
    scores, predictions = {}, {}
    for name, items in questions.items():
        listener.step(f"score {label}: {name}")
        with clock.timed(f"score {label}"), AnswerCache(config.output / "answers.sqlite") as cache:
            scores[name], predictions[name] = evaluate(
                engine, modules[name], items, cache=cache, model=sha, listener=Asking(count=listener.count)
            )
        _write_evaluation(config, label, folder, sha, modules[name], items, predictions[name], scores[name])
    return Scored(scores=scores, predictions=predictions, sha256=sha)


def _write_evaluation(
    config: AdaptConfig,
    label: str,
    folder: Path,
    sha: str,
    benchmark: ModuleType,
    items: Sequence[Item],
    predictions: Sequence[Prediction],
    score: Score,
) -> None:
    """The files that ``minivl eval`` writes, in ``RUN/base`` or ``RUN/adapted``."""
    drawn = benchmark is general
    about = outputs.facts(
        benchmark,
        items,
        split="test",
        protocol=next(iter(benchmark.PROTOCOLS)),
        data=None if drawn else config.data or config.output / "data",
        model={"name": label, "path": str(folder), "sha256": sha},
        of=len(items),
        limit=None,
        seed=0,
    )
    about |= {"names": _probed(), "count": config.general_items, "seed": general.SEED} if drawn else {}
    place = config.output / label / score.benchmark
    outputs.write_lines(place / outputs.PREDICTIONS, outputs.rows(benchmark, items, predictions))
    outputs.write_json(place / outputs.SCORE, outputs.result(benchmark, score, about))


def _validation_probe(
    config: AdaptConfig, benchmarks: Mapping[str, ModuleType], data: Path, base: Path
) -> Callable[[InternVL], dict[str, float]]:
    """Measures each benchmark's primary metric on validation questions; :func:`overall` of them picks the best."""
    files = home(base)
    items = {name: list(b.items(data, "validation"))[: config.validation_items] for name, b in benchmarks.items()}

    def probe(model: InternVL) -> dict[str, float]:
        engine = Engine.around(model, files)
        measured = {}
        for name, benchmark in benchmarks.items():
            score, _ = evaluate(engine, benchmark, items[name])
            measured[f"{name} {benchmark.PRIMARY_METRIC}"] = score.values[benchmark.PRIMARY_METRIC]
        measured["score"] = overall(
            measured[f"{name} {b.PRIMARY_METRIC}"] / getattr(b, "PRIMARY_METRIC_MAX", 100.0)
            for name, b in benchmarks.items()
        )
        return measured

    return probe


def overall(shares: Iterable[float]) -> float:
    """One number for several primary metrics, each a share of its maximum: their geometric mean, 0.01 to about 1.

    Relative gains weigh alike whatever the unit: a CIDEr of 150 is 15 % of what it may reach and far better than 30,
    which a mean of shares drowns in the noise of a percentage of few questions. A hundredth is added to each share, so
    that a zero does not hide the others.
    """
    return math.exp(statistics.fmean(math.log(max(0.0, share) + 0.01) for share in shares))


def _result(
    config: AdaptConfig,
    domain: ModuleType,
    benchmarks: Mapping[str, ModuleType],
    data: Path,
    base_folder: Path,
    recipe: Recipe,
    items: Mapping[str, Sequence[Item]],
    base: Scored,
    adapted: Scored,
) -> dict[str, Any]:
    """Everything the report shows."""
    columns = [
        {
            "benchmark": name,
            "key": key,
            "group": key.partition("/")[0].replace("_", " ").capitalize(),
            "label": key.partition("/")[2] or key,
            "higher_is_better": key not in benchmark.LOWER_IS_BETTER,
        }
        for name, benchmark in benchmarks.items()
        for key in base.scores[name].values
    ]
    splits = {split: sum(1 for _ in domain.convert(data, split)) for split in ("train", "validation", "test")}
    return {
        **{"base": "base", "adapted": "adapted", "train": "train", "probe": ["synth"], "checkpoint": "train/best"},
        "domain": config.domain,
        "title": getattr(domain, "TITLE", config.domain),
        "command": config.command,
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
        "model": {"name": config.model or "nano", "path": str(base_folder), "sha256": base.sha256},
        "adapted_sha256": adapted.sha256,
        "versions": {
            "mini_internvl": mini_internvl.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"threads": torch.get_num_threads(), "processor": platform.processor() or platform.machine()},
        "recipe": to_dict(recipe),
        "data": {**splits, "sha256": file_hash(data / "clips.jsonl") if (data / "clips.jsonl").exists() else ""},
        "benchmarks": {
            name: {
                label: {"items": s.scores[name].items, "values": s.scores[name].values, "notes": s.scores[name].notes}
                for label, s in (("base", base), ("adapted", adapted))
            }
            for name in benchmarks
        },
        "columns": columns,
        "general": _general(base, adapted),
        "clips": _clips(config.output, benchmarks, items, base, adapted),
    }


def _general(base: Scored, adapted: Scored) -> dict[str, Any]:
    """The probe before and after, by kind and in the mean (per cent)."""
    kinds = [name for name in base.scores["general"].values if "/" not in name and name != "mean"]
    counts = base.scores["general"].counts
    sides = {"base": base.scores["general"].values, "adapted": adapted.scores["general"].values}
    return {
        **{label: {kind: values[kind] for kind in kinds} for label, values in sides.items()},
        "items": {kind: counts[kind] for kind in kinds},
        "mean": {label: values["mean"] for label, values in sides.items()},
    }


def _question(item: Item) -> str:
    """The text that is asked, without its images."""
    return question(item.messages[-1:])


def _clips(
    output: Path,
    benchmarks: Mapping[str, ModuleType],
    items: Mapping[str, Sequence[Item]],
    base: Scored,
    adapted: Scored,
) -> list[dict[str, Any]]:
    """Test records spread evenly over the split, with every question and both answers."""
    clips: dict[str, dict[str, Any]] = {}
    for name, benchmark in benchmarks.items():
        rows = zip(items[name], base.predictions[name], adapted.predictions[name], strict=True)
        for item, before, after in rows:
            parts = image_parts(item.messages)
            frames = [os.path.relpath(part.source, output) for part in parts]
            clip = clips.setdefault(
                item.reference["clip"], {"id": item.reference["clip"], "frames": frames, "questions": []}
            )
            clip["questions"].append(
                {
                    "kind": item.reference["kind"],
                    "question": _question(item),
                    "truth": str(item.reference["answer"]),
                    "base": before.text,
                    "adapted": after.text,
                    "base_right": benchmark.right(item, before.text),
                    "adapted_right": benchmark.right(item, after.text),
                }
            )
    every = list(clips.values())
    return every[:: max(1, len(every) // SHOWN_CLIPS)][:SHOWN_CLIPS]


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
