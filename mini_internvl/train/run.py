"""A recipe, run: model and tokenizer loaded or made, stages one after the other, checkpoints written.

What is written where, and who may write it, is ``train.run_folder``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mini_internvl.data import DataError, Fault
from mini_internvl.engine.device import resolve_device
from mini_internvl.model.vlm import InternVL
from mini_internvl.ranks import Ranks, ranks
from mini_internvl.recipes import Recipe
from mini_internvl.records import Batch
from mini_internvl.train import losses, run_folder, state
from mini_internvl.train.data import HeldOut, MixedDataset, Opener, held_out_set, shown_samples
from mini_internvl.train.distributed import whole
from mini_internvl.train.initial import (
    Base,
    InitialCheckpoint,
    find_base,
    open_initial,
    sample_processor,
    save_checkpoint,
)
from mini_internvl.train.learner import Learner
from mini_internvl.train.loop import AUTOCAST, Run, held_out_loss, run_stage
from mini_internvl.train.meter import Progress
from mini_internvl.train.parts import set_trainable, trainable
from mini_internvl.train.processor import SampleProcessor
from mini_internvl.train.quarantine import Quarantine
from mini_internvl.train.samples import AnswerLog
from mini_internvl.train.selfcheck import check_first, check_pictures

STALE = ".stale"  # lies in last/ from when its run is extended until it is written anew
FIRST = 16  # samples of a stage among which an image is looked for
_log = logging.getLogger(__name__)


def run_recipe(
    recipe: Recipe,
    folder: str | Path,
    *,
    probe: Callable[[InternVL], dict[str, float]] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    stoppable: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(lambda: False),
    workers: int = 1,
    opener: Opener | None = None,
    extend: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Run or continue a recipe; with ``extend`` also one, even finished, whose last stage has more steps or other data.

    From where it is, the learning rate then follows the schedule of the new length. A folder of the same recipe is
    continued, one of another is refused. ``probe`` measures the model in training; its ``"score"`` picks the best
    checkpoint. Without it the held-out loss does (lower is better), and without held-out data the last checkpoint is
    the best. ``opener`` may have opened some of the sources already. ``tell`` is given a line that says how the first
    image is seen. The other arguments are those of :class:`Run`.

    Returns:
        The folder of the best checkpoint.

    Raises:
        RecipeError: a stage names only parts without adapters.
        RunFolderError: the folder is in use or holds another run, or data or base changed since it began.
        DataError: a sample cannot be used.
        Interrupted: stopped; the same call goes on.
    """
    backend = "cpu:gloo,cuda:nccl" if resolve_device(recipe.device).type == "cuda" else "gloo"
    with ranks(backend) as world, run_folder.own(Path(folder), world) as owned:
        recipe = run_folder.check_folder(recipe, owned.path, extend=extend)
        best, last = owned.path / "best", owned.path / "last"
        done = run_folder.stages_done(recipe, owned.position(), extend=extend)
        opener = opener or Opener(workers=workers, strict=not recipe.max_faults)
        if done == len(recipe.stages):
            world.by_first(lambda: _check_finished(recipe, owned.path, opener, extend))
        if done < len(recipe.stages) or not last.exists() or (last / STALE).exists():
            run = Run(
                recipe=recipe,
                folder=owned,
                ranks=world,
                on_progress=on_progress,
                should_stop=should_stop,
                stoppable=stoppable,
                workers=workers,
                extend=extend,
            )
            base = find_base(recipe)
            world.by_first(lambda: _open_all(recipe, base, done, opener))  # the others then find the indexes
            datasets = {
                stage.name: MixedDataset(stage, sample_processor(base, stage), seed=recipe.seed + number, opener=opener)
                for number, stage in list(enumerate(recipe.stages))[done:]
            }  # of all stages, and before the weights are read: every row is checked before any work
            run = replace(run, quarantine=Quarantine(owned.path, list(datasets.values()), recipe, world))
            if world.first and (line := _first_image(datasets)):
                tell(line)
            start = open_initial(recipe, world.local if world.size > 1 else None)
            start = _run_stages(start, run, datasets, probe, opener)
            if world.first:
                save_checkpoint(start, last)
        world.exchange(None)
        return best if best.exists() else last


def _check_finished(recipe: Recipe, path: Path, opener: Opener, extend: bool) -> None:
    """Compare the data of a finished run with what they were; those that are gone are told and not compared."""
    named = [(f"{stage.name}/{n}", one, stage) for stage in recipe.stages for n, one in enumerate(stage.data)]
    named += [(f"held out/{n}", one, recipe.stages[-1]) for n, one in enumerate(recipe.held_out)]
    found: dict[str, dict[str, str]] = {}
    for name, source, stage in named:
        try:
            fingerprint = opener(source, sample_processor(find_base(recipe), stage)).fingerprint
        except ValueError as error:
            _log.warning("the run in %s is finished; its data cannot be compared: %s", path, error)
            continue
        found[name] = {"path": source.path or source.name, "fingerprint": fingerprint}
    run_folder.check_data(recipe, path, found, extend=extend)


def _first_image(datasets: Mapping[str, MixedDataset]) -> str:
    """How the first image is seen, of those that the first samples have; empty where they have none."""
    dataset = next(iter(datasets.values()), None)
    if dataset is None or not isinstance(dataset.process, SampleProcessor):  # an encoder alone cuts no tiles
        return ""
    for sample in map(dataset.sample, range(min(FIRST, len(dataset)))):
        if isinstance(sample, Fault):
            continue
        try:
            line = dataset.process.describe(sample)
        except (ValueError, OSError):  # it is told when its turn comes
            continue
        if line:
            return f"{sample.source}/{sample.id}: {line}"
    return ""


def _open_all(recipe: Recipe, base: Base, done: int, opener: Opener) -> None:
    """Index what the stages that are left will read."""
    for stage in recipe.stages[done:]:
        for source in (*stage.data, *recipe.held_out):
            opener(source, sample_processor(base, stage))


def _run_stages(
    start: InitialCheckpoint,
    run: Run,
    datasets: Mapping[str, MixedDataset],
    probe: Callable[[InternVL], dict[str, float]] | None,
    opener: Opener,
) -> InitialCheckpoint:
    """Run the stages that are not done yet, those of ``datasets``, and give what they have trained.

    The folder is claimed when the first of them can begin.
    """
    recipe, model, world = run.recipe, start.model, run.ranks
    done = len(recipe.stages) - len(datasets)
    for stage in recipe.stages:
        set_trainable(model, stage.parts())  # a stage that would train nothing is refused before any work

    def begin() -> Mapping[str, bytes]:
        """Claim the folder, and put into the model what finished stages have trained; what goes beside it."""
        run.folder.claim(recipe, _facts(recipe, start, list(datasets.values()), opener), extend=run.extend)
        if run.ranks.first and (run.folder.path / "last").exists():
            (run.folder.path / "last" / STALE).touch()
        assert run.quarantine is not None
        run.quarantine.begin()
        saved = state.newest(run.folder.state)
        if saved is not None and saved.counters["stage"] not in datasets:  # stopped between two stages, or at the end
            trained = (trainable(model, one.parts()) for one in recipe.stages[:done])
            state.load_weights(saved, model, frozenset[str]().union(*trained))
            learner = Learner(model, recipe.stages[done - 1])
            state.load_losses(saved, learner)
            return losses.files(learner.loss.values())
        return start.beside

    if not datasets:
        start = replace(start, beside=begin())
    for stage in recipe.stages[done:]:
        dataset = datasets[stage.name]
        stage_run = _watched(run, start, dataset, probe, opener)
        if stage is recipe.stages[done]:
            start = replace(start, beside=begin())
        beside = run_stage(start.model, stage, dataset, replace(stage_run, beside=start.beside))
        trained_model = whole(start.model, world, everywhere=True)
        assert trained_model is not None
        start = replace(start, model=trained_model.to(start.model.device), beside=beside)
    return start


def _watched(
    run: Run,
    start: InitialCheckpoint,
    dataset: MixedDataset,
    probe: Callable[[InternVL], dict[str, float]] | None,
    opener: Opener,
) -> Run:
    """The run with what is called while a stage trains."""
    recipe, stage = run.recipe, dataset.stage
    sources = losses.held_out_sources(recipe, stage)
    held_out = held_out_set(sources, dataset.process, recipe, opener)
    shown = shown_samples(sources, dataset.process, recipe, opener) if "answers" in stage.loss_settings() else []
    answers = AnswerLog(run.folder.path, stage.name, shown, tokenizer=start.folder, max_tiles=stage.max_tiles)
    return replace(
        run,
        evaluate=functools.partial(_evaluate, recipe, held_out, probe, run.ranks),
        on_best=functools.partial(_keep_best, start, run, {"stage": stage.name}),
        show=functools.partial(_show, run.ranks, answers) if shown else None,
        check=functools.partial(_check, recipe, start, held_out, [source.path or source.name for source in sources]),
    )


def _check(
    recipe: Recipe, start: InitialCheckpoint, held_out: HeldOut | None, names: Sequence[str], batch: Batch,
    learner: Learner,
) -> None:  # fmt: skip
    """Before the first step of a stage: DataError where its first loss counts nothing of the held-out data."""
    autocast = AUTOCAST.get(recipe.precision)
    if start.tokenizer is None:
        check_pictures(batch, learner, autocast=autocast)
    else:
        check_first(batch, learner, tokenizer=start.tokenizer, autocast=autocast)
    if held_out is not None and not any(learner.count(one) for one in held_out):
        raise DataError(
            f"held_out: {', '.join(names)}: nothing in it can be measured by the loss {next(iter(learner.loss))}; give "
            "rows that have what it learns, or leave held_out away"
        )


def _keep_best(start: InitialCheckpoint, run: Run, metadata: dict[str, str], learner: Learner) -> None:
    """Save the model as the best so far; all processes call it."""
    model, beside = whole(start.model, run.ranks), losses.files(learner.loss.values())
    if model is not None:
        save_checkpoint(replace(start, model=model, beside=beside), run.folder.path / "best", metadata)


def _evaluate(
    recipe: Recipe,
    held_out: HeldOut | None,
    probe: Callable[[InternVL], dict[str, float]] | None,
    world: Ranks,
    learner: Learner,
) -> dict[str, float]:
    """What is measured of a model in training, and its score. Every process measures the loss, the first the probe."""
    measured = {"held_out_loss": held_out_loss(learner, held_out, recipe.precision)} if held_out else {}
    if probe is not None:
        model = whole(learner.model, world)
        if model is not None:
            measured.update(probe(model.to(learner.model.device)))
    if "score" not in measured and held_out:
        measured["score"] = -measured["held_out_loss"]
    return world.exchange(measured)[0]


def _show(world: Ranks, answers: AnswerLog, learner: Learner, step: int) -> None:
    """Keep answers of the model in training; all processes call it."""
    model = whole(learner.model, world)
    if model is not None:
        answers(model.to(learner.model.device), step)


def _facts(
    recipe: Recipe,
    start: InitialCheckpoint,
    datasets: Sequence[MixedDataset],
    opener: Opener,
) -> dict[str, Any]:
    """What must be the same when the run goes on, beside the recipe, and what then changes rounding.

    Warns of what is odd in the data.
    """
    opened = {
        f"{dataset.stage.name}/{i}": (source, dataset.sources[i])
        for dataset in datasets
        for i, source in enumerate(dataset.stage.data)
    }
    process = datasets[0].process if datasets else sample_processor(start, recipe.stages[-1])
    opened |= {f"held out/{i}": (source, opener(source, process)) for i, source in enumerate(recipe.held_out)}
    for line in sorted({line for _, source in opened.values() for line in source.warnings}):
        _log.warning("%s", line)
    return {
        "base": losses.base_hash(recipe, start.sha256),
        "data": {
            name: {"path": asked.path or asked.name, "fingerprint": source.fingerprint}
            for name, (asked, source) in opened.items()
        },
        "threads": torch.get_num_threads(),
        "device": start.model.device.type,
    }
