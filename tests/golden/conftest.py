"""Recorded outputs of the original implementation: ``tests/golden/data``, or any folder of that layout.

Set MINIVL_GOLDEN to another folder to check other cases; file names, counts and shapes are read from it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("MINIVL_GOLDEN") or Path(__file__).parent / "data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded outputs."""
    assert ROOT.is_dir(), f"MINIVL_GOLDEN names {ROOT}, which is not a folder"
    return ROOT
