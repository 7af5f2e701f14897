"""TensorBoard event files beside the logs, where the ``tensorboard`` package is there (extra ``watch``).

A stage has a folder of its own below ``tensorboard/``, so that steps count within it. What a run writes after it was
resumed hides the same and later steps of its earlier files, so no curve goes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
FLUSH_SECONDS = 10  # a viewer sees steps at most so late, and a kill loses no more


class EventWriter:
    """Writes the values of steps; without the package it does nothing."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is that of the run."""
        self.folder, self.stage = folder / FOLDER, ""
        self.writer: SummaryWriter | None = None
        self.available = find_spec("tensorboard") is not None

    def write(self, stage: str, step: int, values: Mapping[str, object]) -> None:
        """Write a step's finite numbers, each under its name; what else ``values`` holds is left out."""
        if not self.available:
            return
        if self.writer is None or stage != self.stage:
            self.close()
            self.writer, self.stage = self._open(stage, step), stage
        for name, value in values.items():
            if isinstance(value, int | float) and name != "step" and math.isfinite(value):
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush what is written; a later step opens a new file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _open(self, stage: str, step: int) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        name = "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in stage)
        place = str(self.folder / name)
        writer: Any = SummaryWriter  # which tells no types
        return cast("SummaryWriter", writer(place, purge_step=step, flush_secs=FLUSH_SECONDS))
