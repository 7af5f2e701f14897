"""A folder of simulated driving clips for the BDD-X benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mini_internvl.domains import driving_sim


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw folder with 24 test clips of one small frame each."""
    folder = tmp_path_factory.mktemp("clips")
    driving_sim.build(folder, train=1, validation=0, test=24, frames=2, size=56)
    return folder
