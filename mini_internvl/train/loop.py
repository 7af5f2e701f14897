"""The one training loop: every stage, from scratch or adapting, is a call of :func:`run_stage`.

The gradient of a step is that of the loss summed over all supervised tokens of the step and divided by their number (by
the sum of their weights, where a stage weighs them), whatever the split into micro batches. The loop stops on a loss
that is not finite and names the samples.
Settings follow the official scripts: AdamW, cosine with linear warm-up, clipping at 1.0 (``zero_stage1_config.json``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mini_internvl.model.lora import adapted, adapter_parameters
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import RecipeError, StageRecipe
from mini_internvl.records import Batch, Interrupted
from mini_internvl.train import state
from mini_internvl.train.data import DataError, MixedDataset, step_batches, to_device
from mini_internvl.train.learner import Learner
from mini_internvl.train.meter import Progress, Throughput
from mini_internvl.train.optim import make_optimizer
from mini_internvl.train.run_folder import Position, RunFolder


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the samples."""


@dataclass(kw_only=True)
class Run:
    """Where a run writes, how it computes, and its callbacks."""

    folder: RunFolder
    """Holds the state, the log and what ``on_best`` writes."""
    precision: str = "fp32"
    """fp32, or bf16 arithmetic on float32 weights."""
    seed: int = 0
    """Seed of mixing and drop path."""
    eval_every: int = 0
    """Steps between calls of ``evaluate``; 0 only at the end."""
    save_every: int = 200
    """Steps between saved states."""
    trained: Sequence[str] = ()
    """Parts of the model that earlier stages of the run have trained; the state keeps them too."""
    evaluate: Callable[[Learner], dict[str, float]] | None = None
    """Measures the model; ``"score"`` (higher is better) decides which checkpoint is best."""
    on_best: Callable[[InternVL, dict[str, float]], None] | None = None
    """Called with a model that measures best so far, to keep it."""
    on_progress: Callable[[Progress], None] | None = None
    """Called after every step."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step; True saves the state and raises Interrupted."""
    stoppable: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(lambda: False)
    """Entered while steps are made, and only then; gives a function that is asked as ``should_stop`` is."""
    last_stage: bool = True
    """Whether the run ends with this stage: there a stop after the last step comes too late."""
    workers: int = 1
    """Processes that prepare samples."""
    sum_counts: Callable[[float], float] = lambda count: count
    """Sums what a step counts over all processes that train together."""


def learning_rate(stage: StageRecipe, step: int) -> float:
    """Rate of a step (from 0): linear warm-up, then a half cosine to ``min_lr_ratio``."""
    warmup = max(1, round(stage.warmup_ratio * stage.steps))
    if step < warmup:
        return stage.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, stage.steps - warmup)
    floor = stage.min_lr_ratio
    return stage.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def trainable(model: InternVL, parts: Sequence[str]) -> frozenset[str]:
    """Names of the parameters that the named parts (vision, projector, llm) train.

    In a model with adapters, vision and llm mean their adapters, the base stays frozen; the projector trains in full.
    """
    with_adapters = adapted(model)
    modules = {"vision": model.vision_model, "projector": model.mlp1, "llm": model.language_model}
    wanted = {
        id(parameter)
        for part in parts
        for parameter in (
            adapter_parameters(modules[part]) if with_adapters and part != "projector" else modules[part].parameters()
        )
    }
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in wanted)


def set_trainable(model: InternVL, parts: Sequence[str]) -> None:
    """Freeze everything but the named parts, as :func:`trainable` means them.

    Raises:
        RecipeError: no named part has anything to train.
    """
    names = trainable(model, parts)
    if not names:
        raise RecipeError(f"train names {', '.join(parts)}, where this model has no adapters; nothing would train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def set_drop_path(model: InternVL, rate: float) -> None:
    """Set stochastic depth: 0 in the first block, growing linearly to ``rate`` in the last."""
    layers = model.vision_model.encoder.layers
    for block, value in zip(layers, torch.linspace(0, rate, len(layers)).tolist(), strict=True):
        block.drop_path = value


def accumulate(
    learner: nn.Module, batches: Iterable[Batch], count: float, device: torch.device, precision: str
) -> float:
    """Add one step's gradients to the parameters.

    Args:
        learner: a :class:`Learner`, perhaps wrapped.
        batches: micro batches of the step.
        count: what their sums are divided by.
        device: where the learner is.
        precision: as in :class:`Run`.

    Returns:
        The loss summed over the batches and divided by ``count``.

    Raises:
        NonFiniteLoss: names the samples of the micro batch.
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


def run_stage(model: InternVL, stage: StageRecipe, dataset: MixedDataset, run: Run) -> Mapping[str, float]:
    """Train through one stage, going on from the run folder's state when it is of this stage.

    Args:
        model: where it trains, changed in place.
        stage: the row of settings.
        dataset: the samples of its steps.
        run: folder, precision and callbacks.

    Returns:
        The last measurements.

    Raises:
        NonFiniteLoss: with the sample names; the last saved state is kept.
        DataError: a sample cannot be used; the state of the steps before it is saved.
        Interrupted: a stop was asked for; the state is saved.
    """
    set_trainable(model, stage.train)
    set_drop_path(model, stage.drop_path)
    torch.manual_seed(run.seed)
    learner = Learner(model, stage)
    optimizer = make_optimizer(learner, stage)
    kept = trainable(model, (*run.trained, *stage.train))
    at = run.folder.restore(stage.name, learner, optimizer, kept)
    log, meter = run.folder.log(stage.name), Throughput()
    steps = step_batches(dataset, at.step, run.workers)
    learner.train()
    with run.stoppable() as asked_to_stop:
        while at.step < stage.steps:
            try:
                batches = next(steps)
            except DataError as error:
                run.folder.save(at, learner, optimizer, kept)
                raise DataError(f"{error} (step {at.step + 1} of {stage.name}; the state before it is saved)") from None
            lr = learning_rate(stage, at.step)
            mean, norm = _optimise(learner, batches, optimizer, lr, run, stage.clip)
            at.step += 1
            meter.update(sum(int(batch.attention_mask.sum()) for batch in batches))
            held_out: dict[str, float] = {}
            if run.evaluate and (at.step == stage.steps or (run.eval_every and at.step % run.eval_every == 0)):
                with meter.paused():
                    held_out = _measure(learner, run, at)
            values: dict[str, Any] = {"loss": mean, "lr": lr, "grad_norm": norm, "tokens_per_s": meter.tokens_per_s}
            log.write(at.step, **values, **held_out)
            if run.on_progress:
                place: dict[str, Any] = {"stage": stage.name, "step": at.step, "steps": stage.steps}
                left = meter.seconds_left(stage.steps - at.step)
                run.on_progress(Progress(**place, seconds_left=left, **values, held_out=held_out))
            stopping = (run.should_stop() or asked_to_stop()) and not (run.last_stage and at.step == stage.steps)
            if stopping or at.step % run.save_every == 0 or at.step == stage.steps:
                with meter.paused():
                    run.folder.save(at, learner, optimizer, kept)
            if stopping:
                raise Interrupted(f"stopped after step {at.step} of {stage.steps} in {stage.name}; the state is saved")
    model.eval()
    return at.measured


def _optimise(
    learner: Learner, batches: Sequence[Batch], optimizer: torch.optim.Optimizer, lr: float, run: Run, clip: float
) -> tuple[float, float]:
    """One optimiser step; the mean loss before it and the norm of its gradient."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    count = run.sum_counts(sum(learner.count(batch) for batch in batches))
    mean = accumulate(learner, batches, count, learner.model.device, run.precision)
    norm = float(nn.utils.clip_grad_norm_(learner.parameters(), clip))
    if not math.isfinite(norm):
        names = ", ".join(name for batch in batches for name in batch.sample_ids)
        raise NonFiniteLoss(f"the gradient's norm is {norm} on samples {names}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return mean, norm


def _measure(learner: Learner, run: Run, at: Position) -> dict[str, float]:
    """Measure the model, and keep it where it is the best so far."""
    assert run.evaluate is not None
    with evaluating(learner):
        measured = run.evaluate(learner)
        score = measured.get("score")
        if run.on_best and (at.best is None or (score is not None and score >= at.best)):
            at.best = score
            run.on_best(learner.model, measured)
    at.measured = measured
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
