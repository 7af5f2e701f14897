"""A stage under way: what goes on around each of its steps.

Rows that cannot be used are set aside, the model is measured and kept where it is the best, the logs are written and
the state is saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from mini_internvl.data import DataError
from mini_internvl.recipes import StageRecipe
from mini_internvl.records import Interrupted
from mini_internvl.train import log, state
from mini_internvl.train.data import MixedDataset, StepData
from mini_internvl.train.distributed import Watchdog
from mini_internvl.train.events import EventWriter
from mini_internvl.train.learner import Learner
from mini_internvl.train.meter import Meter, Progress
from mini_internvl.train.quarantine import Quarantine
from mini_internvl.train.run_folder import Position

if TYPE_CHECKING:
    from mini_internvl.train.loop import Run, Stepper


@dataclass(frozen=True, kw_only=True)
class UnderWay:
    """A stage that trains: where it is, and what goes on around each of its steps."""

    stepper: Stepper
    kept: frozenset[str]  # names of the parameters that a state keeps
    at: Position
    dataset: MixedDataset
    run: Run
    watchdog: Watchdog
    meter: Meter
    quarantine: Quarantine
    events: EventWriter

    @property
    def stage(self) -> StageRecipe:
        return self.stepper.stage

    @property
    def last(self) -> bool:
        """Whether no step of the stage follows."""
        return self.at.ended or self.at.step == self.stage.steps

    def waiting(self, number: int) -> None:
        """The next step waits for a sample."""
        self._beat(self.at.step + 1, f"waiting for sample {number} ({self.dataset.label(number)})")

    def set_aside(self, step: StepData) -> None:
        """Write down the rows that a step cannot use; DataError where they are too many, the state before it saved."""
        name, number = self.stage.name, self.at.step + 1
        try:
            self.quarantine.add(step.unusable, name, number)
        except DataError as error:
            if self.at.step:  # else the state is still that of the stage before
                self._save()
            raise DataError(f"{error} (step {number} of {name}; the state before it is saved)") from None

    def make(self, step: StepData) -> None:
        """Make a step, measure the model where it is time to, and tell of both."""
        run, at, learner = self.run, self.at, self.stepper.learner
        self._beat(at.step + 1, f"training on {step.names}")
        if at.step == 0 and run.check is not None and not learner.sharded:
            run.check(step.batches[0], learner)
        values = self.stepper.step(at.step, step)
        at.step += 1
        speed = self.meter.update(values, values.pop("pairs"), step.waited)
        held_out = {}
        if self.last or at.step % run.recipe.eval_every == 0:
            self._beat(at.step, "measuring")
            held_out = _measure(learner, run, at)
            at.ended = 0 < run.recipe.patience <= at.waited
        if run.ranks.first:
            _tell(run, self.stage, at, values, held_out, speed, self.meter)
            self.events.write(self.stage.name, at.step, {**values, **held_out, **speed})

    def keep(self, asked: bool) -> None:
        """Save the state where it is time to, and stop where that was ``asked``; after the last step it is too late."""
        stage, at = self.stage, self.at
        stopping = asked and not (self.last and stage == self.run.recipe.stages[-1])
        if stopping or self.last or at.step % self.run.recipe.save_every == 0:
            self._save()
        if stopping:
            raise Interrupted(f"stopped after step {at.step} of {stage.steps} in {stage.name}; the state is saved")

    def _save(self) -> None:
        self._beat(self.at.step, "saving")
        scale = self.stepper.scaler.state_dict()
        self.at.scale, self.at.grown = scale.get("scale", 0.0), scale.get("_growth_tracker", 0)
        self.run.folder.save(self.at, state.tensors(self.stepper.learner, self.stepper.optimizer, self.kept))

    def _beat(self, step: int, doing: str) -> None:
        self.watchdog.beat(f"{self.stage.name}, step {step}: {doing}")


def _tell(
    run: Run,
    stage: StageRecipe,
    at: Position,
    values: Mapping[str, float],
    held_out: Mapping[str, float],
    speed: Mapping[str, float],
    meter: Meter,
) -> None:
    """Write the logs' rows of a step, and show how far the stage is."""
    row = {"stage": stage.name, "step": at.step}
    log.append(run.folder.path / log.METRICS, [{**row, **values, **held_out}])
    log.append(run.folder.path / log.SPEED, [{**row, **speed}])
    if run.on_progress:
        run.on_progress(
            Progress(
                stage=stage.name,
                step=at.step,
                steps=stage.steps,
                loss=values["loss"],
                lr=values["lr"],
                grad_norm=values["grad_norm"],
                tokens_per_s=meter.tokens_per_s,
                seconds_left=meter.seconds_left(stage.steps - at.step),
                held_out=held_out,
            )
        )


def _measure(learner: Learner, run: Run, at: Position) -> dict[str, float]:
    """Measure the model, if the run does, and keep it where it is the best so far."""
    if run.evaluate is None:
        return {}
    with evaluating(learner), torch.compiler.set_stance("force_eager") if run.recipe.compile else nullcontext():
        measured = run.evaluate(learner)
        score = measured.get("score")
        at.waited = 0 if at.best is None or (score is not None and score > at.best) else at.waited + 1
        if at.best is None or (score is not None and score >= at.best):
            at.best = score
            run.on_best(learner)
        if run.show is not None:
            run.show(learner, at.step)
    return measured


@contextmanager
def evaluating(learner: nn.Module) -> Iterator[None]:
    """Measure without gradients; drop path and dropout rest."""
    learner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        learner.train()
