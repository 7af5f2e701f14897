"""One small build for all tests of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mini_internvl.domains import driving_sim

COUNTS = {"train": 4, "validation": 1, "test": 3}


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw folder with COUNTS clips."""
    folder = tmp_path_factory.mktemp("clips")
    driving_sim.build(folder, **COUNTS)
    return folder
