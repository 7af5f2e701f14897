"""An engine on the tiny checkpoint whose weights are large enough for answers that vary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mini_internvl.engine import Engine, load


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Engine:
    """Not to be changed by a test."""
    engine = load(checkpoint, device="cpu", dtype="float32")
    with torch.no_grad():
        for parameter in engine.model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return engine
