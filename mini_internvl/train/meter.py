"""What a progress line shows of a running stage: throughput and time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a progress line shows after a step."""

    stage: str
    step: int  # steps done of ``steps``
    steps: int
    loss: float  # mean over the supervised tokens of the step, weighted where the stage weighs them
    lr: float
    grad_norm: float  # norm of the gradient before clipping
    tokens_per_s: float  # tokens, visual and padding-free, per second of the last steps
    seconds_left: float  # at the present throughput
    held_out: Mapping[str, float]  # measurements made after this step, if any


class Meter:
    """Speed and time left, measured over the training steps alone; recent steps weigh more."""

    def __init__(self) -> None:
        self.step_seconds = self.tokens_per_s = 0.0
        self.start()

    def start(self) -> None:
        """A step begins: measuring and saving before it do not count."""
        self.began = time.monotonic()

    def update(self, amounts: Mapping[str, float], waited: float) -> dict[str, float]:
        """The step has ended, in which so many ``tokens`` and ``tiles`` were done; its row in the log of speeds."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        share = 0.05 if self.step_seconds else 1.0
        self.step_seconds += share * (seconds - self.step_seconds)
        self.tokens_per_s += share * (amounts["tokens"] / seconds - self.tokens_per_s)
        rates = {f"{name}_per_s": amounts[name] / seconds for name in ("tokens", "supervised", "tiles")}
        return {"seconds": seconds, **rates, "data_wait": waited / seconds}

    def seconds_left(self, steps: int) -> float:
        """For so many further steps."""
        return steps * self.step_seconds
