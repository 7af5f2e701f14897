"""A training that is killed and stopped at random moments ends as one that ran through."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mini_internvl.recipes import PackRecipe, SourceRecipe, to_dict

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_training.py"


@pytest.fixture
def mixed(recipe, rows, tmp_path):
    """A run that packs two sources, one of which has a damaged image, with drop path."""
    folder = tmp_path / "data"
    shutil.copytree(rows.parent, folder)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:100])
    (folder / "few.jsonl").write_text("".join(rows.read_text().splitlines(keepends=True)[3:]))
    sources = (
        SourceRecipe(kind="jsonl", path=str(rows), weight=3.0),
        SourceRecipe(kind="jsonl", path=str(folder / "few.jsonl"), weight=1.0),
    )
    changes = {"pack": PackRecipe(tokens=500, tiles=6), "batch_size": 2, "max_length": 500}
    return lambda **settings: recipe(
        {"steps": 12, "drop_path": 0.3, "data": sources} | changes, eval_every=4, max_faults=0.2, **settings
    )


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kind"), [(1, "ddp"), (2, "ddp"), (2, "fsdp")])
def test_kills_and_stops_change_nothing(mixed, tmp_path, processes, kind):
    """``MINIVL_KILLS=30 MINIVL_STOPS=10`` for the full count."""
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(to_dict(mixed(parallel=kind))))
    few = "4" if processes == 1 else "2"
    counts = ["--kills", os.environ.get("MINIVL_KILLS", few), "--stops", os.environ.get("MINIVL_STOPS", "2")]
    done = subprocess.run(
        [sys.executable, SCRIPT, path, tmp_path / "runs", *counts, "--processes", str(processes)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 differ" in done.stdout
    quarantine = (tmp_path / "runs/whole/quarantine.jsonl").read_text().splitlines()
    assert [json.loads(row)["place"] for row in quarantine] == ["line 1"]
