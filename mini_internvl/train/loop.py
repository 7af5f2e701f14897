"""The one training loop: every stage, from scratch or adapting, is a call of :func:`run_stage`.

The gradient of a step is that of the loss summed over all supervised tokens of the step and divided by their number (by
the sum of their weights, where a stage weighs them), whatever the split into micro batches. The loop stops on a loss
that is not finite and names the samples.
Settings follow the official scripts: AdamW, cosine with linear warm-up, clipping at 1.0 (``zero_stage1_config.json``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import Recipe, StageRecipe
from mini_internvl.records import Batch, Interrupted
from mini_internvl.train import state
from mini_internvl.train.data import DataError, MixedDataset, step_batches, to_device
from mini_internvl.train.learner import Learner
from mini_internvl.train.log import MetricsLog
from mini_internvl.train.meter import Progress, Throughput
from mini_internvl.train.optim import make_optimizer
from mini_internvl.train.parts import learning_rate, set_drop_path, set_trainable, trainable
from mini_internvl.train.run_folder import Position, RunFolder


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the samples."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe in its folder, and what is called while its stages train."""

    recipe: Recipe
    folder: RunFolder
    evaluate: Callable[[Learner], dict[str, float]] | None = None
    """Measures the model; ``"score"`` (higher is better) decides which checkpoint is best."""
    on_best: Callable[[], None] = lambda: None
    """Called when the model measures best so far, to keep it."""
    on_progress: Callable[[Progress], None] | None = None
    """Called after every step."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step; True saves the state and raises Interrupted. After the last one it is too late."""
    stoppable: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(lambda: False)
    """Entered while steps are made, and only then; gives a function that is asked as ``should_stop`` is."""
    workers: int = 1
    """Processes that prepare samples."""


def accumulate(
    learner: nn.Module, batches: Iterable[Batch], count: float, device: torch.device, precision: str
) -> float:
    """Add the gradients of a step's micro batches; the loss summed over them, divided by ``count`` as they are.

    NonFiniteLoss names the samples of the micro batch.
    """
    total = 0.0
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = learner(to_device(batch, device))["loss"]
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the loss is {value} on samples {', '.join(batch.sample_ids)}")
        (loss / max(1, count)).backward()
        total += value
    return total / max(1, count)


def run_stage(model: InternVL, stage: StageRecipe, dataset: MixedDataset, run: Run) -> None:
    """Train a model in place through one stage, going on from the run folder's state when it is of this stage.

    Raises:
        NonFiniteLoss: with the sample names; the last saved state is kept.
        DataError: a sample cannot be used; the state of the steps before it is saved.
        Interrupted: a stop was asked for; the state is saved.
    """
    recipe, folder = run.recipe, run.folder
    set_trainable(model, stage.train)
    set_drop_path(model, stage.drop_path)
    torch.manual_seed(recipe.seed)
    learner = Learner(model, stage)
    optimizer = make_optimizer(learner, stage)
    stages = recipe.stages[: recipe.stages.index(stage) + 1]
    kept = trainable(model, [part for one in stages for part in one.train])
    at = folder.restore(stage.name, learner, optimizer, kept)
    log, meter = MetricsLog(folder.path / "metrics.jsonl", stage.name), Throughput()
    steps = step_batches(dataset, at.step, run.workers)
    learner.train()
    with run.stoppable() as asked_to_stop:
        while at.step < stage.steps:
            meter.start()
            try:
                batches = next(steps)
            except DataError as error:
                if at.step:  # else the state is still that of the stage before
                    folder.save(at, state.tensors(learner, optimizer, kept))
                raise DataError(f"{error} (step {at.step + 1} of {stage.name}; the state before it is saved)") from None
            lr = learning_rate(stage, at.step)
            mean, norm = _optimise(learner, batches, optimizer, lr, recipe.precision, stage.clip)
            at.step += 1
            last = at.step == stage.steps
            meter.update(sum(int(batch.attention_mask.sum()) for batch in batches))
            held_out = _measure(learner, run, at) if last or at.step % recipe.eval_every == 0 else {}
            values: dict[str, Any] = {"loss": mean, "lr": lr, "grad_norm": norm, "tokens_per_s": meter.tokens_per_s}
            log.write(at.step, **values, **held_out)
            if run.on_progress:
                values |= {"seconds_left": meter.seconds_left(stage.steps - at.step), "held_out": held_out}
                run.on_progress(Progress(stage=stage.name, step=at.step, steps=stage.steps, **values))
            too_late = last and stage == recipe.stages[-1]
            stopping = (run.should_stop() or asked_to_stop()) and not too_late
            if stopping or last or at.step % recipe.save_every == 0:
                folder.save(at, state.tensors(learner, optimizer, kept))
            if stopping:
                raise Interrupted(f"stopped after step {at.step} of {stage.steps} in {stage.name}; the state is saved")
    model.eval()


def _optimise(
    learner: Learner, batches: Sequence[Batch], optimizer: torch.optim.Optimizer, lr: float, precision: str, clip: float
) -> tuple[float, float]:
    """One optimiser step; the mean loss before it and the norm of its gradient."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    count = sum(learner.count(batch) for batch in batches)
    mean = accumulate(learner, batches, count, learner.model.device, precision)
    norm = float(nn.utils.clip_grad_norm_(learner.parameters(), clip))
    if not math.isfinite(norm):
        names = ", ".join(name for batch in batches for name in batch.sample_ids)
        raise NonFiniteLoss(f"the gradient's norm is {norm} on samples {names}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return mean, norm


def _measure(learner: Learner, run: Run, at: Position) -> dict[str, float]:
    """Measure the model, if the run does, and keep it where it is the best so far."""
    if run.evaluate is None:
        return {}
    with evaluating(learner):
        measured = run.evaluate(learner)
        score = measured.get("score")
        if at.best is None or (score is not None and score >= at.best):
            at.best = score
            run.on_best()
    return measured


@contextmanager
def evaluating(learner: nn.Module) -> Iterator[None]:
    """Measure without gradients and without touching the training random state."""
    device = next(learner.parameters()).device
    random = state.random_state(device)
    learner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        learner.train()
        state.set_random_state(random, device)


def held_out_loss(learner: Learner, batches: Iterable[Batch], precision: str = "fp32") -> float:
    """The first loss summed over fixed batches and divided by what it counts."""
    total = count = 0.0
    device = learner.model.device
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            sums = learner(to_device(batch, device))
        total += sums["loss"].item()
        count += float(sums["count"])
    return total / max(1, count)
