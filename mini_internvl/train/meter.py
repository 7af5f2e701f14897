"""How fast a stage runs: what a progress line shows, and the rows of ``speed.jsonl``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mini_internvl.model.flops import Flops, ModelFlops

if sys.platform != "win32":
    import resource


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

    def __init__(self, cost: ModelFlops, device: torch.device, peak: float | None = None) -> None:
        """``cost`` is that of the model as it trains; ``peak`` are operations a second of all processes together."""
        self.cost, self.device, self.peak = cost, device, peak
        self.step_seconds = self.tokens_per_s = 0.0
        self.start()

    def start(self) -> None:
        """A step begins: measuring and saving before it do not count."""
        self.began = time.monotonic()

    def update(self, amounts: Mapping[str, float], pairs: float, waited: float) -> dict[str, float]:
        """The step has ended, in which so much was done; its row in the log of speeds.

        ``amounts`` are of all processes, as are ``pairs``: tokens that see a token.
        """
        seconds = max(time.monotonic() - self.began, 1e-9)
        share = 0.05 if self.step_seconds else 1.0
        self.step_seconds += share * (seconds - self.step_seconds)
        self.tokens_per_s += share * (amounts["tokens"] / seconds - self.tokens_per_s)
        rates = {f"{name}_per_s": amounts[name] / seconds for name in ("tokens", "supervised", "tiles")}
        work = self.cost.work(pairs=pairs, **{name: amounts[name] for name in ("tiles", "tokens", "supervised")})
        done = self._utilisation(work, seconds)
        return {"seconds": seconds, **rates, **done, "data_wait": waited / seconds, "memory": peak_memory(self.device)}

    def _utilisation(self, work: Flops, seconds: float) -> dict[str, float]:
        """Operations a second, without those computed again, and their share of the peak where it is known."""
        speed = work.useful / seconds
        return {"flops_per_s": speed} | ({"mfu": speed / self.peak} if self.peak else {})

    def seconds_left(self, steps: int) -> float:
        """For so many further steps."""
        return steps * self.step_seconds


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: of tensors on a GPU, else of the process; 0 where that is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
