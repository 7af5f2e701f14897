"""What a progress line shows of a running stage: throughput and time left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


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
    """At the present throughput."""
    held_out: Mapping[str, float] = field(default_factory=dict)
    """Measurements made after this step, if any."""


class Throughput:
    """Tokens per second and time left, measured over the training steps alone; recent steps weigh more."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.step_seconds: float | None = None
        self.tokens_per_s = 0.0

    def update(self, tokens: int) -> None:
        """Note a finished step."""
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

    def seconds_left(self, steps: int) -> float:
        """For so many further steps."""
        return steps * (self.step_seconds or 0.0)
