"""A distilled encoder against the same encoder trained from scratch: linear probes, and answers once it is joined.

    python bench/students.py [--output FOLDER] [--seeds 3] [--task FOLDER_OF_CLASS_FOLDERS ...]

The teacher is the encoder of nano; the student is as wide and has half its blocks. Both ways start from the same random
weights and see the same pictures for the same number of steps. "distilled" learns the teacher's features, then takes
its place before nano's projector and language model, and all train on answers; "scratch" takes that place at once and
trains on answers all the time, which is more work a step. Three tables: both ways over seeds, the ways to compare
features, and shares of the pictures. Runs are made beside each other, one thread each. A run that is finished is not
trained again, so a stopped bench goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, ClassVar

import torch

from mini_internvl import files, terminal
from mini_internvl.benchmarks import synth as drawn_benchmark
from mini_internvl.data import drawn
from mini_internvl.engine import load
from mini_internvl.engine.hub import NANO
from mini_internvl.evaluate import predict
from mini_internvl.evaluate.probing import Task, open_encoder, probe, read_task
from mini_internvl.evaluate.run import score
from mini_internvl.model.encoder import save_encoder
from mini_internvl.model.files import CONFIG, read_tensors, write_tensors
from mini_internvl.recipes import Recipe, SourceRecipe, StageRecipe, StudentRecipe
from mini_internvl.train.distil import distil
from mini_internvl.train.run import run_recipe
from mini_internvl.train.student import open_student

KINDS = ("digits", "clothes", "shapes", "words")  # of the pictures, and of the answers that are asked for
TASKS = ("digits", "clothes", "shapes")  # of them, those with classes to probe
STUDENT = {
    "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 112,
    "initializer_range": 0.05,
}  # fmt: skip
VISION = "vision_model."
STATES = 3  # last hidden states that are paired
SHARES = (0.01, 0.1, 1.0)
WAYS = tuple((how, by) for by in ("cosine", "smooth_l1") for how in ("none", "standardise", "phi_s"))


class Bench:
    """The pictures, the parts, and the runs of this bench, each made once below a folder."""

    here: ClassVar[Bench]  # of a process that makes runs

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.folder = given, given.output
        self.tasks: list[Task] = [read_task(name, train=given.train, test=given.test) for name in (*TASKS, *given.task)]
        self.items = list(drawn_benchmark.items(names=KINDS, count=given.questions))
        bar = terminal.ProgressBar("pictures", unit="pictures")
        self.pictures = drawn.write(
            KINDS, given.pictures // len(KINDS), self.folder / "pictures", progress=lambda kind, n, of: bar(n, of)
        )
        terminal.close()
        self.sources = {share: self._source(share) for share in SHARES}

    def _source(self, share: float) -> SourceRecipe:
        """The first pictures of each kind as files of rows, each with its first question."""
        meta = {}
        for name, one in files.read_object(self.pictures).items():
            rows = [json.loads(line) for line in Path(one["annotation"]).read_text(encoding="utf-8").splitlines()]
            kept = [{**row, "conversations": row["conversations"][:2]} for row in rows[: round(share * len(rows))]]
            path = Path(one["annotation"]).with_suffix(f".{share:g}.jsonl")
            if not path.exists():
                files.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
            meta[name] = {"root": one["root"], "annotation": str(path), "length": len(kept)}
        path = self.pictures.with_name(f"first-{share:g}.json")
        files.write_json(path, meta)
        return SourceRecipe(kind="rows", path=str(path))

    def distilled(
        self, seed: int, *, how: str = "none", by: str = "cosine", share: float = 1.0, steps: int | None = None
    ) -> Path:
        """A student that has learnt the teacher's features, by default in all steps of distillation."""
        given = self.given
        steps = steps or given.steps
        stage = StageRecipe(
            name="features",
            data=(self.sources[share],),
            steps=steps,
            loss={"features": {"teacher": "nano", "layers": STATES, "keep": "bf16", "normalise": how, "objective": by}},
            train=("vision",),
            optimizer="muon",
            lr=2e-2,
            min_lr_ratio=0.1,
            weight_decay=0.05,
            betas=(0.9, 0.98),
            batch_size=given.batch_size,
            micro_batch=given.batch_size,
        )
        name = f"distilled-{seed}-{how}-{by}-{share:g}" + (f"-{steps}" if steps != given.steps else "")
        recipe = Recipe(name=name, student=StudentRecipe(config=STUDENT), stages=(stage,), seed=seed, save_every=steps)
        return self._run(recipe, distil)

    def fresh(self, seed: int) -> Path:
        """The student as it begins."""
        folder = self.folder / f"fresh-{seed}"
        if not folder.exists():
            model, _ = open_student(StudentRecipe(config=STUDENT), seed, "cpu", torch.float32)
            save_encoder(model, folder, dtype=torch.float32)
        return folder

    def joined(self, vision: Path, name: str, seed: int, steps: int, lr: float) -> Path:
        """An encoder in the place of nano's, and all trained on answers; ``lr`` is the encoder's."""
        begin = self.folder / f"{name}-begin"
        if not begin.exists():
            _with_encoder(vision, begin)
        stage = StageRecipe(
            name="answers",
            data=(self.sources[1.0],),
            steps=steps,
            train={"vision": {"lr": lr}, "projector": {}, "llm": {}},
            lr=1e-4,
            min_lr_ratio=0.1,
            weight_decay=0.05,
            betas=(0.9, 0.98),
            batch_size=self.given.batch_size,
            micro_batch=self.given.batch_size,
            max_tiles=1,
            max_length=1024,
        )
        return self._run(Recipe(name=name, model=str(begin), stages=(stage,), seed=seed, save_every=steps), run_recipe)

    def _run(self, recipe: Recipe, train: Any) -> Path:
        return Path(train(recipe, self.folder / recipe.name, workers=0))

    def ways(self, seed: int) -> dict[str, Callable[[], Path]]:
        """Name -> what makes the model of each way, for one seed."""
        given = self.given
        return {
            "distilled": lambda: self.joined(
                self.distilled(seed), f"joined-{seed}", seed, given.joint_steps, given.joint_lr
            ),
            "scratch": lambda: self.joined(
                self.fresh(seed), f"scratch-{seed}", seed, given.steps + given.joint_steps, given.scratch_lr
            ),
        }

    def made(self, task: tuple[Any, ...]) -> str:
        """Make a run and what is measured of it, one of :func:`runs`; its name."""
        kind, seed, *rest = task
        if kind in ("distilled", "scratch"):
            path = self.ways(seed)[kind]()
            self.answered(path, f"{kind}-{seed}")
        else:
            path = self.distilled(seed, **rest[0])
        self.probed(path)
        return path.parent.name

    def probed(self, encoder: Path, name: str = "") -> dict[str, float]:
        """Accuracy of a linear probe on each task, and the mean over them, per cent; by default by the run's name."""
        name = name or encoder.parent.name
        path = self.folder / f"probe-{name}.json"
        if not path.exists():
            found = probe([open_encoder(encoder, name=name, dtype="float32")], self.tasks)
            files.write_json(path, {one.task: one.measures["linear"].value for one in found.results})
        values = {task.name: files.read_object(path)[task.name] for task in self.tasks}
        return {**values, "mean": statistics.fmean(values.values())}

    def answered(self, model: Path, name: str) -> dict[str, float]:
        """Right answers of each kind, and the mean over them, per cent."""
        path = self.folder / f"answers-{name}.json"
        if not path.exists():
            found = score(drawn_benchmark, self.items, predict(load(model, dtype="float32"), self.items))
            files.write_json(path, dict(found.values))
        values = files.read_object(path)
        return {name: values[name] for name in (*KINDS, "mean")}


def _with_encoder(vision: Path, folder: Path) -> None:
    """Nano with another encoder."""
    with files.new_folder(folder) as temporary:
        kept = ((name, tensor) for name, tensor in read_tensors(NANO) if not name.startswith(VISION))
        put = ((VISION + name, tensor) for name, tensor in read_tensors(vision))
        write_tensors(itertools.chain(kept, put), temporary)
        for path in NANO.glob("*"):
            if path.suffix in (".json", ".txt"):
                files.copy_file(path, temporary / path.name)
        raw = files.read_object(NANO / CONFIG)
        encoder = {**raw["vision_config"], **files.read_object(vision / CONFIG)}
        files.write_json(temporary / CONFIG, {**raw, "vision_config": encoder})


def _cell(values: Sequence[float]) -> str:
    """Mean over seeds with its standard error."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def _columns(rows: Sequence[dict[str, float]]) -> list[str]:
    return [_cell([row[name] for row in rows]) for name in rows[0]]


def both_ways(bench: Bench) -> None:
    """Distilled and from scratch, over seeds."""
    given, seeds = bench.given, range(bench.given.seeds)
    probes: dict[str, list[dict[str, float]]] = {}
    answers: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        models = {name: make() for name, make in bench.ways(seed).items()}
        fresh = {"random weights": bench.probed(bench.fresh(seed), f"fresh-{seed}")}
        known = fresh | {"distilled, not joined yet": bench.probed(bench.distilled(seed))}
        for name, found in (known | {name: bench.probed(path) for name, path in models.items()}).items():
            probes.setdefault(name, []).append(found)
        for name, path in models.items():
            answers.setdefault(name, []).append(bench.answered(path, f"{name}-{seed}"))
    probes["nano's encoder, the teacher"] = [bench.probed(NANO, "teacher")]
    answers["nano, the teacher"] = [bench.answered(NANO, "teacher")]
    steps = f"{given.steps} + {given.joint_steps} steps of {given.batch_size}, {len(seeds)} seeds"
    for title, found in (("linear probe", probes), ("held-out answers", answers)):
        shown = [(name, *_columns(rows)) for name, rows in found.items()]
        apart = [
            {key: one[key] - other[key] for key in one}
            for one, other in zip(found["distilled"], found["scratch"], strict=True)
        ]
        shown.append(("distilled - scratch", *_columns(apart)))
        terminal.table(f"{title}, per cent right; {steps}", ("", *next(iter(found.values()))[0]), shown)


def ablation(bench: Bench) -> None:
    """Ways to compare features, by linear probe, without the joint step."""
    rows = []
    for how, by in WAYS:
        found = [
            bench.probed(bench.distilled(seed, how=how, by=by, steps=bench.given.ablation_steps))
            for seed in range(bench.given.ablation_seeds)
        ]
        rows.append((by, how, *_columns(found)))
    headers = ("objective", "normalised", *(task.name for task in bench.tasks), "mean")
    steps = f"{bench.given.ablation_steps} steps, {bench.given.ablation_seeds} seeds"
    terminal.table(f"linear probe after {steps}", headers, rows)


def shares(bench: Bench) -> None:
    """Distillation on the first pictures alone, the same number of steps."""
    rows = []
    for share in SHARES:
        found = [bench.probed(bench.distilled(seed, share=share)) for seed in range(bench.given.ablation_seeds)]
        rows.append((f"{share:.0%}", str(round(share * bench.given.pictures)), *_columns(found)))
    headers = ("share", "pictures", *(task.name for task in bench.tasks), "mean")
    terminal.table(f"linear probe after {bench.given.steps} steps, by pictures", headers, rows)


def runs(given: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Every run of the three tables, the longest first, each once."""
    found: list[tuple[Any, ...]] = []
    for seed in range(given.seeds):
        found += [("scratch", seed), ("distilled", seed)]
    for seed in range(given.ablation_seeds):
        shares = [share for share in SHARES if share < 1 or seed >= given.seeds]  # the whole is distilled already
        found += [("features", seed, {"share": share}) for share in shares]
        found += [("features", seed, {"how": how, "by": by, "steps": given.ablation_steps}) for how, by in WAYS]
    return found


def make_runs(given: argparse.Namespace) -> None:
    """Make what is not made yet, in several processes of one thread each."""
    every, bar = runs(given), terminal.ProgressBar("runs", unit="runs")
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.processes, spawned, initializer=_begin, initargs=(given,)) as pool:
        for number, done in enumerate(as_completed([pool.submit(_make, task) for task in every]), 1):
            bar(number, len(every), done.result())
    terminal.close()


def _begin(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    Bench.here = Bench(given)


def _make(task: tuple[Any, ...]) -> str:
    return Bench.here.made(task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/students"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ablation-seeds", type=int, default=3)
    parser.add_argument("--ablation-steps", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=600, help="of distillation")
    parser.add_argument("--joint-steps", type=int, default=100)
    parser.add_argument("--joint-lr", type=float, default=1e-4, help="of the distilled encoder in the joint step")
    parser.add_argument("--scratch-lr", type=float, default=6e-4, help="of the encoder from scratch")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--questions", type=int, default=150, help="held-out questions of each kind")
    parser.add_argument("--train", type=int, default=1000, help="most pictures that a probe is fitted on")
    parser.add_argument("--test", type=int, default=500, help="most pictures that a probe is asked about")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs that are made at a time")
    parser.add_argument("--task", action="append", default=[], help="more labelled pictures, as of minivl probe")
    given = parser.parse_args()
    began, bench = time.monotonic(), Bench(given)
    make_runs(given)
    both_ways(bench)
    ablation(bench)
    shares(bench)
    print(f"{(time.monotonic() - began) / 60:.0f} min this time; settings: {_settings(given)}")


def _settings(given: argparse.Namespace) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in vars(given).items() if name not in ("output", "task", "processes")
    )


if __name__ == "__main__":
    main()
