"""The training log: of repeated steps the later count, torn lines are left out, a long log takes linear time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mini_internvl.report import build, training


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def steps(stage: str, *numbers: int, **values: Any) -> list[dict[str, Any]]:
    return [{"stage": stage, "step": number, **values} for number in numbers]


def test_steps_written_again_after_a_stop_replace_the_first_ones(tmp_path: Path) -> None:
    rows = [*steps("one", 1, 2, loss=9.0), *steps("two", 1, 2, 3, loss=9.0, score=1.0)]
    rows += [*steps("two", 2, 3, 4, loss=5.0)]
    log = training.read_log(write(tmp_path / "metrics.jsonl", rows))
    assert list(log.get("loss").steps) == [1, 2, 3, 4, 5, 6]
    assert list(log.get("loss").values) == [9, 9, 9, 5, 5, 5]
    assert list(log.get("score").steps) == [3]
    assert log.borders == [(0, "one"), (2, "two")]


def test_going_back_to_an_earlier_stage(tmp_path: Path) -> None:
    rows = [*steps("one", 1, 2, 3, loss=9.0), *steps("two", 1, loss=9.0)]
    rows += [*steps("one", 3, loss=5.0), *steps("two", 1, 2, loss=5.0)]
    log = training.read_log(write(tmp_path / "metrics.jsonl", rows))
    assert list(log.get("loss").values) == [9, 9, 5, 5, 5]
    assert log.borders == [(0, "one"), (3, "two")]


def test_torn_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", steps("one", 1, loss=2.0))
    path.write_text(path.read_text() + '{"stage": "one", "st{"stage": "one", "step": 2}\n[]\n{"step": "a"}\n{"step": 3')
    log = training.read_log(path)
    assert len(log.get("step")) == 1
    assert log.unreadable == 4
    build(tmp_path)
    assert "4 lines of the training log cannot be read" in (tmp_path / "report.html").read_text()


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match=r'metrics.jsonl:1: no line of a training log; .*"step"'):
        build(tmp_path)


def test_peaks_survive_thinning() -> None:
    column = training.Column()
    for i in range(10_000):
        column.steps.append(i)
        column.values.append(100.0 if i == 5_003 else 1.0)
    points = column.points()
    assert len(points) <= 2 * training.CHART_POINTS + 2
    assert (5_003, 100.0) in points
    assert points[0][0] == 0
    assert points[-1][0] == 9_999


def test_the_running_mean_is_that_of_the_window() -> None:
    column = training.Column()
    for i in range(10):
        column.steps.append(i + 1)
        column.values.append(float(i))
    assert column.means(4)[:5] == [(1, 0.0), (2, 0.5), (3, 1.0), (4, 1.5), (5, 2.5)]


def test_the_time_of_a_long_log_grows_with_its_length_only() -> None:
    """The mean over one part in 25 of all steps took a quarter of an hour for a million steps when it was quadratic."""
    log = training.Log()
    for key in ("step", "loss", "lr"):
        column = log.columns.setdefault(key, training.Column())
        column.steps.extend(range(1, 1_000_001))
        column.values.extend(range(1_000_000))
    began = time.monotonic()
    drawn = training.charts(log, {})
    assert time.monotonic() - began < 20
    assert sum(len(chart["svg"]) for chart in drawn) < 60_000


@pytest.mark.slow
def test_a_million_lines_make_a_small_page(tmp_path: Path) -> None:
    line = '{"stage": "s", "step": %d, "loss": 2.5, "lr": 1e-4, "grad_norm": 1.0, "tokens_per_s": 900.0}\n'
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(line % step for step in range(1, 1_000_001))
    began = time.monotonic()
    page = build(tmp_path)
    assert time.monotonic() - began < 120
    assert page.stat().st_size < 200_000


def test_a_training_run_has_its_curves_recipe_and_next_commands(tmp_path: Path) -> None:
    rows = [{"stage": "s", "step": i, "loss": 9 - i, "lr": 0.1, "held_out_loss": 8.0} for i in range(1, 6)]
    write(tmp_path / "metrics.jsonl", rows)
    (tmp_path / "recipe.json").write_text('{"name": "my-run", "seed": 3}')
    (tmp_path / "best").mkdir()
    page = build(tmp_path).read_text()
    assert "<h1>my-run</h1>" in page
    assert page.count('class="chart"') == 2  # loss and learning rate
    assert "seed: 3" in page
    assert f"minivl ask IMAGE &#34;your question&#34; --model {tmp_path}/best" in page
