"""Benches that need a machine of their own go their whole way on a small one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=BENCH.parent, check=False)


@pytest.mark.slow
def test_the_engine_bench_goes_its_whole_way_on_a_small_model(tmp_path):
    options = ("--tiny", "--rounds", "1", "--answer", "8", "--dtype", "float32", "--output", str(tmp_path / "o.json"))
    done = run("bench/engine.py", *options)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "o.json").read_text())["results"]
    assert list(results) == ["torch", "transformers"]
    assert all(value > 0 for rows in results.values() for values in rows.values() for value in values)
    assert results["torch"]["second"][0] < results["torch"]["first"][0]
    assert "| torch, times |" in done.stdout


@pytest.mark.slow
def test_the_gpu_bench_goes_its_whole_way_on_a_cpu(tmp_path):
    done = run("bench/gpu.py", "--tiny", "--device", "cpu", "--output", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["way"] for row in rows] == ["packed", "padded, 1 sorted", "packed", "padded, 2 sorted"]
    for row in rows:
        assert "failed" not in row
        assert row["loss_differs"] < 1e-4
        assert row["tokens_per_s"] > row["supervised_per_s"] > 0
        assert row["tflops"] > 0
    assert all(0.3 < row["planned_gb"] < 3 for row in rows if row["way"] == "packed")
