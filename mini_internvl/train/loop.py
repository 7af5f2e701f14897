"""The one training loop: every stage, from scratch or adapting, is a call of :func:`run_stage`.

The gradient of a step is that of the loss summed over all supervised tokens of the step and divided by their number (by
the sum of their weights, where a stage weighs them), whatever the split into micro batches. The loop stops on a loss
that is not finite and names the samples.
Settings follow the official scripts: AdamW, cosine with linear warm-up, clipping at 1.0 (``zero_stage1_config.json``).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mini_internvl.model.lora import adapted, adapter_parameters
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import RecipeError, StageRecipe
from mini_internvl.records import Batch, Interrupted
from mini_internvl.train import losses, state
from mini_internvl.train.data import StepDataset, loader
from mini_internvl.train.optim import make_optimizer


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the samples."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a progress line shows after a step."""

    stage: str
    """Name of the stage."""
    step: int
    """Steps done."""
    steps: int
    """Steps in all."""
    loss: float
    """Mean over the supervised tokens of the step, weighted where the stage weighs them."""
    lr: float
    """Learning rate of the step."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    tokens_per_s: float
    """Tokens, visual and padding-free, per second of the last steps."""
    seconds_left: float
    """At the present pace."""
    held_out: dict[str, float] = field(default_factory=dict)
    """Measurements made after this step, if any."""


@dataclass(kw_only=True)
class Run:
    """Where a run writes and whom it tells."""

    folder: Path
    """Holds state/, metrics.jsonl and what ``on_best`` writes."""
    precision: str = "fp32"
    """fp32, or bf16 arithmetic on float32 weights."""
    seed: int = 0
    """Seed of mixing and drop path."""
    eval_every: int = 0
    """Steps between calls of ``evaluate``; 0 only at the end."""
    save_every: int = 200
    """Steps between saved states."""
    evaluate: Callable[[InternVL, losses.Loss], dict[str, float]] | None = None
    """Measures the model, given the stage's loss; ``"score"`` (higher is better) decides which checkpoint is best."""
    on_best: Callable[[InternVL, dict[str, float]], None] | None = None
    """Called with a model that measures best so far, to keep it."""
    on_progress: Callable[[Progress], None] | None = None
    """Called after every step."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step; True saves the state and raises Interrupted."""
    workers: int = 1
    """Processes that prepare batches."""


def learning_rate(stage: StageRecipe, step: int) -> float:
    """Rate of a step (from 0): linear warm-up, then a half cosine to ``min_lr_ratio``."""
    warmup = max(1, round(stage.warmup_ratio * stage.steps))
    if step < warmup:
        return stage.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, stage.steps - warmup)
    floor = stage.min_lr_ratio
    return stage.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_trainable(model: InternVL, parts: Sequence[str]) -> None:
    """Freeze everything but the named parts (vision, projector, llm).

    In a model with adapters, vision and llm mean their adapters, the base stays frozen; the projector trains in full.

    Raises:
        RecipeError: no named part has anything to train.
    """
    with_adapters = adapted(model)
    modules = {"vision": model.vision_model, "projector": model.mlp1, "llm": model.language_model}
    for name, module in modules.items():
        module.requires_grad_(name in parts and (not with_adapters or name == "projector"))
        for parameter in adapter_parameters(module):
            parameter.requires_grad_(name in parts)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError(f"train names {', '.join(parts)}, where this model has no adapters; nothing would train")


def set_drop_path(model: InternVL, rate: float) -> None:
    """Set stochastic depth: 0 in the first block, growing linearly to ``rate`` in the last."""
    layers = model.vision_model.encoder.layers
    for block, value in zip(layers, torch.linspace(0, rate, len(layers)).tolist(), strict=True):
        block.drop_path = value


def accumulate(
    model: InternVL, batches: Sequence[Batch], precision: str, loss: losses.Loss = losses.ANSWERS
) -> tuple[float, float]:
    """Add one step's gradients to the parameters.

    Returns:
        The loss summed over the batches and divided by its ``count``, and the count.

    Raises:
        NonFiniteLoss: names the samples of the micro batch.
    """
    count = loss.count(batches)
    total = 0.0
    for batch in batches:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            part = loss(model, batch)
        value = part.item()
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the loss is {value} on samples {', '.join(batch.sample_ids)}")
        (part / max(1, count)).backward()
        total += value
    return total / max(1, count), count


def run_stage(model: InternVL, stage: StageRecipe, dataset: StepDataset, run: Run) -> dict[str, float]:
    """Train through one stage, going on from ``run.folder/state`` when it holds a state of this stage.

    Args:
        model: float32 weights, changed in place.
        stage: the row of settings.
        dataset: step -> micro batches.
        run: folder, precision and callbacks.

    Returns:
        The last measurements.

    Raises:
        NonFiniteLoss: with the sample names; the last saved state is kept.
        Interrupted: ``should_stop`` said so; the state is saved.
    """
    set_trainable(model, stage.train)
    set_drop_path(model, stage.drop_path)
    torch.manual_seed(run.seed)
    loss = losses.make(stage, model)
    learner = nn.ModuleDict({"model": model, "loss": loss})
    optimizer = make_optimizer(learner, stage)
    folder = run.folder / "state"
    counters = state.read_counters(folder) or {}
    start, best = 0, -math.inf
    if counters.get("stage") == stage.name:
        state.load_state(folder, learner, optimizer)
        start, best = counters["step"], counters["best"]
    log = MetricsLog(run.folder / "metrics.jsonl", stage.name, start)
    measured: dict[str, float] = counters.get("measured", {})
    pace = Pace(start, stage.steps)
    model.train()
    for step, batches in enumerate(loader(dataset, start, run.workers), start):
        lr = learning_rate(stage, step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        mean, _ = accumulate(model, batches, run.precision, loss)
        norm = float(nn.utils.clip_grad_norm_(learner.parameters(), stage.clip))
        if not math.isfinite(norm):
            names = ", ".join(name for batch in batches for name in batch.sample_ids)
            raise NonFiniteLoss(f"the gradient's norm is {norm} on samples {names}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        pace.update(done, sum(int(batch.attention_mask.sum()) for batch in batches))
        held_out: dict[str, float] = {}
        if run.evaluate and (done == stage.steps or (run.eval_every and done % run.eval_every == 0)):
            with pace.paused(), evaluating(model):
                held_out = measured = run.evaluate(model, loss)
                if run.on_best and held_out.get("score", -math.inf) >= best:
                    best = held_out.get("score", best)
                    run.on_best(model, held_out)
        log.write(done, loss=mean, lr=lr, grad_norm=norm, tokens_per_s=pace.tokens_per_s, **held_out)
        if run.on_progress:
            run.on_progress(pace.progress(stage.name, done, mean, lr, norm, held_out))
        stopping = run.should_stop() and done < stage.steps
        if stopping or done % run.save_every == 0 or done == stage.steps:
            with pace.paused():
                kept = {"stage": stage.name, "step": done, "best": best, "measured": measured}
                state.save_state(folder, learner, optimizer, kept)
        if stopping:
            raise Interrupted(f"stopped after step {done} of {stage.steps} in {stage.name}; the state is saved")
    model.eval()
    return measured


@contextmanager
def evaluating(model: InternVL) -> Iterator[None]:
    """Measure without gradients and without touching the training random state."""
    random = torch.get_rng_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()
        torch.set_rng_state(random)


def held_out_loss(
    model: InternVL, batches: Sequence[Batch], precision: str = "fp32", loss: losses.Loss = losses.ANSWERS
) -> float:
    """The loss summed over fixed batches and divided by its ``count``."""
    total = 0.0
    for batch in batches:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            total += loss(model, batch).item()
    return total / max(1, loss.count(batches))


class Pace:
    """Tokens per second and time left, measured over the training steps alone."""

    def __init__(self, start: int, steps: int) -> None:
        self.start, self.steps = start, steps
        self.began = self.last = time.monotonic()
        self.step_seconds: float | None = None
        self.tokens_per_s = 0.0

    def update(self, done: int, tokens: int) -> None:
        """Note a finished step; recent steps weigh more."""
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        rate = tokens / max(seconds, 1e-9)
        first = self.step_seconds is None
        self.step_seconds = seconds if self.step_seconds is None else 0.95 * self.step_seconds + 0.05 * seconds
        self.tokens_per_s = rate if first else 0.95 * self.tokens_per_s + 0.05 * rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out measuring and saving."""
        yield
        self.last = time.monotonic()

    def progress(
        self, stage: str, done: int, loss: float, lr: float, norm: float, held_out: dict[str, float]
    ) -> Progress:
        """The progress record of a step."""
        return Progress(
            stage=stage,
            step=done,
            steps=self.steps,
            loss=loss,
            lr=lr,
            grad_norm=norm,
            tokens_per_s=self.tokens_per_s,
            seconds_left=(self.steps - done) * (self.step_seconds or 0.0),
            held_out=held_out,
        )


class MetricsLog:
    """One JSON line a step; lines of steps that a resumed run repeats are dropped first."""

    def __init__(self, path: Path, stage: str, start: int) -> None:
        self.path, self.stage = path, stage
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = [row for row in rows if row["stage"] != stage or row["step"] <= start]
            path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def write(self, step: int, **values: Any) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "step": step, **values}) + "\n")
