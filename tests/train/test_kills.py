"""A training that is killed and stopped at random moments ends as one that ran through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mini_internvl.recipes import to_dict

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_training.py"


@pytest.mark.slow
def test_kills_and_stops_change_nothing(recipe, tmp_path):
    """``MINIVL_KILLS=30 MINIVL_STOPS=10`` for the full count."""
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(to_dict(recipe({"steps": 12, "drop_path": 0.3}, eval_every=4))))
    counts = ["--kills", os.environ.get("MINIVL_KILLS", "4"), "--stops", os.environ.get("MINIVL_STOPS", "2")]
    done = subprocess.run(
        [sys.executable, SCRIPT, path, tmp_path / "runs", *counts],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 differ" in done.stdout
