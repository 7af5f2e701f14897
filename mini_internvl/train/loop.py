"""The one training loop: every stage, from scratch or adapting, is a call of :func:`run_stage`.

The gradient of a step is that of the loss summed over all supervised tokens of the step, in all processes, and divided
by their number (by the sum of their weights, where a stage weighs them), whatever the split into micro batches. Each
micro batch draws its random numbers from a seed of its own, so that a step is a pure function of its number. The loop
stops on a loss that is not finite and names the samples.
Settings follow the official scripts: AdamW, cosine with linear warm-up, clipping at 1.0 (``zero_stage1_config.json``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from mini_internvl.model.vlm import InternVL
from mini_internvl.ranks import ALONE, Ranks
from mini_internvl.recipes import Recipe, StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train import losses
from mini_internvl.train.batches import to_device
from mini_internvl.train.data import MixedDataset, StepData, step_batches
from mini_internvl.train.distributed import Watchdog, last_only, parallel, share_buffers
from mini_internvl.train.events import EventWriter
from mini_internvl.train.features import is_projected, open_store
from mini_internvl.train.layout import Layout, kept_plan
from mini_internvl.train.learner import Learner, tile_count
from mini_internvl.train.machines import peak_flops
from mini_internvl.train.meter import Meter, Progress
from mini_internvl.train.optim import make_optimizer
from mini_internvl.train.parts import (
    learning_rate,
    set_checkpointing,
    set_compiled,
    set_drop_path,
    set_trainable,
    trainable,
)
from mini_internvl.train.pictures import PictureProcessor
from mini_internvl.train.processor import SampleProcessor
from mini_internvl.train.quarantine import Quarantine
from mini_internvl.train.run_folder import Position, RunFolder
from mini_internvl.train.under_way import UnderWay

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE, SCALE_STEPS = 2.0**16, 2000  # of the loss in float16: at first, and steps until it is doubled
LEAST_SCALE = 2.0**-14  # below which a gradient that is not finite is no overflow of float16


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the samples."""


class OutOfMemory(RuntimeError):
    """A step did not fit into memory; the message names samples, the part that needed most, and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe in its folder, and what is called while its stages train."""

    recipe: Recipe
    folder: RunFolder
    ranks: Ranks = ALONE
    """The processes that train together."""
    evaluate: Callable[[Learner], dict[str, float]] | None = None
    """Measures the model; ``"score"`` (higher is better) decides which checkpoint is best."""
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Contents of files that lie beside the model that a stage begins with, by name."""
    on_best: Callable[[Learner], None] = lambda learner: None
    """Called when the model measures best so far, to keep it."""
    show: Callable[[Learner, int], None] | None = None
    """Called at each measurement, with the steps made: keeps answers of the model."""
    on_progress: Callable[[Progress], None] | None = None
    """Called after every step."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step; True saves the state and raises Interrupted. After the last one it is too late."""
    stoppable: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(lambda: False)
    """Entered while steps are made, and only then; gives a function that is asked as ``should_stop`` is."""
    workers: int = 1
    """Processes that prepare samples."""
    extend: bool = False
    """Whether the last stage may have more steps, or other data, than when it began."""
    check: Callable[[Batch, Learner], None] | None = None
    """Looks at the first batch of a stage before it is trained on; ValueError says what is wrong."""
    quarantine: Quarantine | None = None
    """Where rows go that cannot be used; ``None`` for one of this stage alone."""


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """Makes optimiser steps: the learner as it is trained, its optimiser, and how."""

    learner: Learner
    wrapped: nn.Module  # the learner, or DDP around it
    optimizer: torch.optim.Optimizer
    stage: StageRecipe
    recipe: Recipe
    ranks: Ranks
    scaler: torch.amp.GradScaler

    def step(self, number: int, step: StepData) -> dict[str, float]:
        """One step (from 0): what was learnt from, the mean loss before it, the norm of its gradient.

        ``pairs`` among it are tokens that see a token.
        NonFiniteLoss names the samples of the micro batch; the weights are then as they were.
        """
        lr = learning_rate(self.stage, number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        names = ("samples", "tokens", "places", "pairs", "supervised", "tiles", "unusable")
        mine = [sum(column) for column in zip(*map(_amounts, step.batches), strict=True)]
        count = sum(self.learner.count(batch) for batch in step.batches)
        count, *totals = self.ranks.total([count, *mine, len(step.unusable)])
        amounts = dict(zip(names, totals, strict=True))
        seeds = [_seed(self.recipe.seed, self.stage.name, number, step.first + n) for n in range(len(step.batches))]
        share, precision = max(1, count) / self.ranks.size, self.recipe.precision
        device = self.learner.model.device
        try:
            losses = accumulate(self.wrapped, step.batches, share, device, precision, seeds=seeds, scaler=self.scaler)
        except (RuntimeError, MemoryError) as error:
            self._explain(error, step.batches)
            raise
        self._check(losses, step.batches, "loss")
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), self.stage.clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if not self.scaler.is_enabled() or self.scaler.get_scale() < LEAST_SCALE:
            self._check([float(norm)] * len(step.batches), step.batches, "gradient's norm")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        for loss in self.learner.loss.values():
            if getattr(loss, "shared", False):  # before a state is saved, of which any process may write them
                share_buffers(loss, self.ranks)
        (total,) = self.ranks.total([sum(losses)])
        padding = 1 - amounts["tokens"] / max(1, amounts.pop("places"))
        return {"loss": total / max(1, count), "lr": lr, "grad_norm": float(norm), **amounts, "padding": padding}

    def _explain(self, error: BaseException, batches: Sequence[Batch]) -> None:
        """OutOfMemory in place of an error that says no more than that; it names the largest micro batch."""
        from mini_internvl.train.remedies import explain_out_of_memory, is_out_of_memory

        if is_out_of_memory(error):
            largest = max(batches, key=lambda batch: (len(batch.tiles), batch.input_ids.numel()))
            raise OutOfMemory(explain_out_of_memory(error, self.recipe, self.stage, largest)) from None

    def _check(self, values: Sequence[float], batches: Sequence[Batch], what: str) -> None:
        """NonFiniteLoss in all processes where a value of one is not finite."""
        odd = [(v, batch.sample_ids) for v, batch in zip(values, batches, strict=True) if not math.isfinite(v)]
        found = [one for odd in self.ranks.exchange(odd) for one in odd]
        if found:
            names = ", ".join(dict.fromkeys(name for _, names in found for name in names))
            raise NonFiniteLoss(f"the {what} is {found[0][0]} on samples {names}")


def _amounts(batch: Batch) -> tuple[int, ...]:
    """Samples, tokens, places for tokens, pairs of tokens that see each other, supervised tokens, tiles of a batch."""
    if not batch.sample_ids:
        return 0, 0, 0, 0, 0, 0
    supervised = int((batch.labels[:, 1:] != -100).sum())
    tokens = int(batch.attention_mask.sum())
    lengths = batch.attention_mask.sum(1)
    if batch.document_ids is not None:
        lengths = torch.cat([ids[ids >= 0].bincount() for ids in batch.document_ids])
    pairs = int((lengths * (lengths + 1) // 2).sum())
    return len(batch.sample_ids), tokens, batch.attention_mask.numel(), pairs, supervised, tile_count(batch)


def _seed(*of: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(of).encode(), digest_size=7).digest(), "little")


def accumulate(
    learner: nn.Module,
    batches: Sequence[Batch],
    count: float,
    device: torch.device,
    precision: str,
    *,
    seeds: Sequence[int] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> list[float]:
    """Add the gradients of a step's micro batches, each divided by ``count``; the sum of each one's loss."""
    found = []
    for number, batch in enumerate(batches):
        if seeds is not None:
            torch.manual_seed(seeds[number])
        with last_only(learner, number == len(batches) - 1):
            with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
                loss = learner(to_device(batch, device))["loss"]
            mean = loss / count
            (mean if scaler is None else scaler.scale(mean)).backward()
        found.append(loss.detach())
    return torch.stack(found).tolist() if found else []  # read once: an accelerator is waited for here


def run_stage(model: InternVL, stage: StageRecipe, dataset: MixedDataset, run: Run) -> dict[str, bytes]:
    """Train a model in place through one stage, going on from the run folder's state when it is of this stage.

    Returns:
        What its losses have made that goes beside the model: contents of files, by name.

    Raises:
        NonFiniteLoss: with the sample names; the last saved state is kept.
        DataError: too many samples cannot be used; the state of the steps before is saved.
        Interrupted: a stop was asked for; the state is saved.
    """
    stepper, kept = _prepare(model, stage, run)
    at = _restore(stepper, kept, dataset, run)
    with Watchdog(run.ranks, run.recipe.stall_seconds) as watchdog, run.stoppable() as asked_to_stop:
        under_way = UnderWay(
            stepper=stepper,
            kept=kept,
            at=at,
            dataset=dataset,
            run=run,
            watchdog=watchdog,
            meter=_meter(stepper.learner, stage, run.ranks),
            quarantine=run.quarantine or Quarantine(run.folder.path, [dataset], run.recipe, run.ranks),
            events=EventWriter(run.folder.path),
        )
        layout = _layout(dataset, model, run)
        steps = step_batches(dataset, at.step, run.workers, layout=layout, ranks=run.ranks, on_wait=under_way.waiting)
        stepper.learner.train()
        while at.step < stage.steps and not at.ended:
            under_way.meter.start()
            step = next(steps)
            under_way.set_aside(step)
            under_way.make(step)
            under_way.keep(run.ranks.total([run.should_stop() or asked_to_stop()])[0] > 0)
    under_way.events.close()
    model.eval()
    return losses.files(stepper.learner.loss.values())


def _restore(stepper: Stepper, kept: frozenset[str], dataset: MixedDataset, run: Run) -> Position:
    """Put back what the run folder holds of a stage, or let its losses begin, and say where it is."""
    stage, learner = stepper.stage, stepper.learner
    at = run.folder.restore(stage.name, learner, stepper.optimizer, kept)
    for loss in learner.loss.values():
        if (taught := losses.open_store(loss, run.recipe)) is not None:
            assert isinstance(dataset.process, PictureProcessor), "a teacher's features are kept of pictures"
            dataset.process = replace(dataset.process, features=taught)
    if not at.step:
        losses.begin(learner.loss.values(), dataset, run.beside)
        share_buffers(learner.loss, run.ranks)
    if stage.cache:
        learner.store = store = open_store(learner.model, run.recipe, stage)  # of the weights as they now are
        assert isinstance(dataset.process, SampleProcessor), "features are kept of samples with images"
        dataset.process = replace(dataset.process, features=store)
    if at.ended:  # early, and it is extended
        at.ended, at.waited = False, 0
    at.before = sum(one.steps for one in run.recipe.stages[: run.recipe.stages.index(stage)])
    if at.scale:
        stepper.scaler.load_state_dict({**stepper.scaler.state_dict(), "scale": at.scale, "_growth_tracker": at.grown})
    return at


def _prepare(model: InternVL, stage: StageRecipe, run: Run) -> tuple[Stepper, frozenset[str]]:
    """What trains, and the names of the parameters that a state keeps."""
    recipe = run.recipe
    set_trainable(model, stage.parts())
    set_drop_path(model, stage.drop_path)
    set_checkpointing(model, stage.checkpointing)
    if recipe.compile:
        set_compiled(model)
    stages = recipe.stages[: recipe.stages.index(stage) + 1]
    kept = frozenset[str]().union(*(trainable(model, one.parts()) for one in stages))
    torch.manual_seed(recipe.seed)
    learner = Learner(model, stage)
    wrapped = parallel(learner, recipe.parallel, run.ranks)
    scaler = torch.amp.GradScaler(
        model.device.type, FIRST_SCALE, growth_interval=SCALE_STEPS, enabled=recipe.precision == "fp16"
    )
    return Stepper(
        learner=learner,
        wrapped=wrapped,
        optimizer=make_optimizer(learner, stage),
        stage=stage,
        recipe=recipe,
        ranks=run.ranks,
        scaler=scaler,
    ), kept


def _meter(learner: Learner, stage: StageRecipe, ranks: Ranks) -> Meter:
    device = learner.model.device
    cost, peak = learner.flops(stage.checkpointing), peak_flops(device)
    if stage.cache:
        cost = cost.kept(is_projected(stage))
    return Meter(cost, device, peak and peak * ranks.size)


def _layout(dataset: MixedDataset, model: InternVL, run: Run) -> Layout:
    plan = None
    if dataset.stage.pack is not None:
        path = run.folder.path / "plan" / f"{run.recipe.stages.index(dataset.stage)}.npz"
        plan = run.ranks.by_first(lambda: kept_plan(dataset, path))
        dataset.extend(int(plan.members.max()) + 1)
    return Layout(dataset, plan, image_size=model.config.image_size)


def held_out_loss(learner: Learner, batches: Iterable[Batch], precision: str = "fp32") -> float:
    """The first loss summed over fixed batches and divided by what it counts."""
    total = count = 0.0
    device = learner.model.device
    for batch in batches:
        with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            sums = learner(to_device(batch, device))
        total += sums["loss"].item()
        count += float(sums["count"])
    return total / max(1, count)
