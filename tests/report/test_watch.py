"""The page of a training run: while it runs, after a kill, with answers over time and rows that were set aside."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mini_internvl.files import write_json
from mini_internvl.records import Sample
from mini_internvl.report import build, watch
from mini_internvl.report.training import read_log
from mini_internvl.train.log import append
from mini_internvl.train.samples import write_samples

RECIPE = {
    "name": "watched",
    "lora": {"rank": 8, "parts": ["llm"]},
    "stages": [
        {"name": "one", "steps": 40, "train": ["projector"], "lr": 1e-3, "batch_size": 4},
        {"name": "two", "steps": 60, "train": {"llm": {}, "vision": {"lr": 4e-6, "layers": 4, "lora": None}}},
    ],
}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def step(stage: str, number: int) -> dict[str, Any]:
    loss = 3.0 / (1 + 0.1 * number) + 0.1 * (number % 3)
    row = {"stage": stage, "step": number, "loss": loss, "lr": 1e-3, "grad_norm": 1 + number % 5, "padding": 0.1}
    return row | ({"held_out_loss": loss + 0.1, "score": -loss} if number % 20 == 0 else {})


def speed(stage: str, number: int, rate: float = 900.0) -> dict[str, Any]:
    rates = {"tokens_per_s": rate + number % 7, "tiles_per_s": 5.0, "supervised_per_s": 90.0}
    return {"stage": stage, "step": number, "seconds": 1.0, **rates, "data_wait": 0.02, "mfu": 0.31}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run in its second stage, killed after step 30 and resumed from step 20."""
    Image.new("RGB", (120, 80), "navy").save(tmp_path / "a.png")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    done = [("one", n) for n in range(1, 41)] + [("two", n) for n in range(1, 36)]
    write_lines(folder / "metrics.jsonl", [step(*at) for at in done])
    before = [("one", n) for n in range(1, 41)] + [("two", n) for n in range(1, 31)]
    speeds = [speed(*at, rate=100.0 if at > ("two", 20) else 900.0) for at in before]
    write_lines(folder / "speed.jsonl", speeds + [speed("two", n) for n in range(21, 36)])
    faults = [{"file": "rows.jsonl", "place": str(n), "reason": f"image {n}.png is missing <b>"} for n in range(60)]
    write_lines(folder / "quarantine.jsonl", [faults[0], *(row | {"stage": "two", "step": 3} for row in faults[1:])])
    parts = [{"type": "image", "image": str(tmp_path / "a.png")}, {"type": "text", "text": "Colour?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "blue"}]
    sample = Sample(id="7", source="rows", messages=turns)
    for stage, number, answer in (("one", 20, "red"), ("one", 40, "red"), ("two", 20, "blue")):
        write_samples(folder, stage, number, lambda asked, answer=answer: [answer] * len(asked), [sample])
    return folder


def test_the_page_of_a_run_that_goes_on(run: Path) -> None:
    page = build(run).read_text()
    titles = re.findall(r'<figure class="card"><h3>(.*?)</h3>', page)
    speeds = ["Tokens per second", "Tiles per second", "Waiting for data", "Model FLOPs utilisation (MFU)"]
    assert titles == ["Loss", "Learning rate", "Gradient norm", "Padding", *speeds]
    assert "Step 75 of 100, in stage two" in page
    assert "vision (lr 4e-6, layers 4); adapters of rank 8 in llm" in page
    assert re.search(r"MFU, mean of 3 steps: from 31\S* to 31\S* at step 75", page)


def test_speeds_of_steps_that_a_kill_repeated_count_once(run: Path) -> None:
    found = watch.watch(run, read_log(run / "metrics.jsonl"), RECIPE).speed.get("tokens_per_s")
    assert list(found.steps) == list(range(1, 76))
    assert min(found.values) >= 900


def test_answers_over_time(run: Path) -> None:
    [sample] = watch.watch(run, read_log(run / "metrics.jsonl"), RECIPE).samples
    assert [(told.when, told.text, told.right) for told in sample.answers] == [
        ("one, step 20 to 40", "red", None),
        ("two, step 20", "blue", True),
    ]
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    for stage, number in (("one", 20), ("one", 40), ("two", 10)):
        write_samples(run, stage, number, lambda asked: ["same"], [Sample(id="8", source="rows", messages=turns)])
    later = next(s for s in watch.watch(run, read_log(run / "metrics.jsonl"), RECIPE).samples if s.id == "rows/8")
    assert [told.when for told in later.answers] == ["one, step 20 to two, step 10"]
    assert (sample.question, sample.reference, sample.left_out) == ("Colour?", "blue", 0)
    [url] = sample.images
    assert url
    assert url in build(run).read_text()


def test_answers_stand_in_the_order_of_the_stages_in_a_copy(run: Path) -> None:
    for stage, hours in (("one", 2), ("two", 1)):
        for path in (run / "samples" / stage).iterdir():
            os.utime(path, (3600 * hours, 3600 * hours))
    [sample] = watch.watch(run, read_log(run / "metrics.jsonl"), RECIPE).samples
    assert [told.when for told in sample.answers] == ["one, step 20 to 40", "two, step 20"]


def test_many_answers_are_thinned_between_the_first_and_the_last(run: Path) -> None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    sample = Sample(id="8", source="rows", messages=turns)
    for number in range(1, 31):
        write_samples(run, "two", number, lambda asked, n=number: [str(n)] * len(asked), [sample])
    found = next(s for s in watch.watch(run, read_log(run / "metrics.jsonl"), {}).samples if s.id == "rows/8")
    assert len(found.answers) == watch.SHOWN_ANSWERS
    assert (found.answers[0].text, found.answers[-1].text, found.left_out) == ("1", "30", 22)


def test_rows_set_aside_are_listed_up_to_a_number(run: Path) -> None:
    with (run / "quarantine.jsonl").open("a") as file:
        file.write('{"file": "torn')
    page = build(run).read_text()
    assert "60 rows could not be used; the first 50 are listed" in page
    assert page.count("png is missing &lt;b&gt;") == 50
    assert "when the data was opened" in page
    assert "two, step 3" in page


def test_a_finished_run_without_more_says_so(run: Path) -> None:
    for name in ("speed.jsonl", "quarantine.jsonl"):
        (run / name).unlink()
    done = [("one", n) for n in range(1, 41)] + [("two", n) for n in range(1, 61)]
    write_lines(run / "metrics.jsonl", [step(*at) for at in done])
    page = build(run).read_text()
    assert "All 100 steps are done." in page
    assert "Tokens per second" not in page
    assert "Rows set aside" not in page


def test_a_stage_that_ended_early_leaves_nothing_to_wait_for(run: Path) -> None:
    for ended, told in ((False, "Step 75 of 100, in stage two"), (True, "Done after 75 of 100 steps")):
        write_json(run / "state/00000075/state.json", {"stage": "two", "step": 35, "before": 40, "ended": ended})
        (run / "state/00000075/.metadata").touch()  # the shards of several processes
        assert told in build(run).read_text()
    for folder in (run / "state").iterdir():
        (folder / "state.json").write_text("{")
    assert "Step 75 of 100, in stage two" in build(run).read_text()


def test_a_name_with_a_line_separator_is_one_row(run: Path) -> None:
    append(run / "quarantine.jsonl", [{"file": "rows.jsonl", "place": "line 8", "reason": "a\u2028b.png is missing"}])
    page = build(run).read_text()
    assert "61 rows could not be used" in page
