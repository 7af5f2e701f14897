"""A thousand rows, eight of them bad in eight ways: set aside with line and reason, or told before the first step."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from mini_internvl.recipes import SourceRecipe, to_dict
from mini_internvl.train.log import read_log
from mini_internvl.train.run import run_recipe

BAD = {  # line -> what is wrong with it
    101: "not valid JSON (Invalid control character at column 41)",
    202: "no format reads a row with the keys id, image",
    303: "there is no answer to learn",
    404: "2 <image> placeholders but 1 images",
    505: "gone.png is missing; check the path",
    606: "text.png is not an image: its content is text",
    707: "cut.jpg is damaged or cut off",
    808: "turn 3 is from the assistant, but the user's is due",
}


@pytest.fixture
def thousand(tmp_path):
    """The file of rows, beside its pictures."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.effect_noise((56, 56), 90).convert("RGB").save(folder / "whole.jpg")
    (folder / "text.png").write_text("no picture at all")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])

    def row(number, image="whole.jpg", turns=(("human", "<image>\nWhat?"), ("gpt", "Noise."))):
        content = [{"from": who, "value": text} for who, text in turns]
        return {"id": str(number), "image": image, "conversations": content}

    lines = [json.dumps(row(number)) for number in range(1, 1001)]
    lines[100] = lines[100][:40]
    lines[201] = json.dumps({"id": "202", "image": "whole.jpg"})
    lines[302] = json.dumps(row(303, turns=[("human", "<image>\nWhat?")]))
    lines[403] = json.dumps(row(404, turns=[("human", "<image><image>\nWhat?"), ("gpt", "Noise.")]))
    lines[504] = json.dumps(row(505, image="gone.png"))
    lines[605] = json.dumps(row(606, image="text.png"))
    lines[706] = json.dumps(row(707, image="cut.jpg"))
    lines[807] = json.dumps(row(808, turns=[("human", "<image>\nWhat?"), ("gpt", "A."), ("gpt", "B.")]))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_eight_bad_rows_are_set_aside_or_stop_a_run_before_its_first_step(recipe, thousand, tmp_path):
    settings = recipe({"steps": 3, "data": (SourceRecipe(kind="rows", path=str(thousand)),)}, held_out=())
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(to_dict(settings)))

    def train(folder, *flags):
        command = [sys.executable, "-m", "mini_internvl", "train", path, "--output", tmp_path / folder, *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    refused = train("refused")
    assert refused.returncode == 1, refused.stderr
    assert "8 rows cannot be used, more than the 1 that max_faults 0.001 allows" in " ".join(refused.stderr.split())
    assert not (tmp_path / "refused").exists()

    done = train("done", "--budget", "1%")
    assert done.returncode == 0, done.stderr
    assert len(read_log(tmp_path / "done/metrics.jsonl")) == 3
    rows = [json.loads(line) for line in (tmp_path / "done/quarantine.jsonl").read_text().splitlines()]
    assert [row["place"] for row in rows] == [f"line {number}" for number in BAD]
    for row, reason in zip(rows, BAD.values(), strict=True):
        assert row["file"] == str(thousand)
        assert reason in row["reason"], row
    told = " ".join(refused.stderr.split())
    assert [row for row in rows if " ".join(row["reason"].split()) not in told] == []
    assert all(re.search(rf"\b{number}: ", told) for number in BAD)


def test_a_row_named_with_a_line_separator_is_known_again(recipe, rows, tmp_path):
    bad = tmp_path / "rows.jsonl"
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Noise."}]
    gone = {"id": "gone", "image": "a\u2028b\u0085c.png", "conversations": turns}
    good = {"id": "good", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "No."}]}
    bad.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (gone, good)), encoding="utf-8")
    sources = tuple(SourceRecipe(kind="rows", path=str(path)) for path in (rows, bad))
    given = recipe({"steps": 2, "data": sources}, held_out=(), max_faults=0.5)
    run_recipe(given, tmp_path / "run")
    kept = (tmp_path / "run/quarantine.jsonl").read_bytes()
    assert kept.count(b"\n") == 1
    run_recipe(recipe({"steps": 4, "data": sources}, held_out=(), max_faults=0.5), tmp_path / "run", extend=True)
    assert (tmp_path / "run/quarantine.jsonl").read_bytes() == kept


def test_a_row_that_two_stages_cannot_use_counts_once(recipe, stage, rows, tmp_path):
    """They read it with other limits, so it is indexed twice."""
    bad = tmp_path / "rows.jsonl"
    gone = {"id": "gone", "image": "gone.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
    bad.write_text("".join(line + "\n" for line in (json.dumps(gone), rows.read_text().splitlines()[2])))
    changes = {"steps": 1, "data": (SourceRecipe(kind="rows", path=str(bad)),)}
    stages = tuple(stage(name=name, max_tiles=tiles, **changes) for name, tiles in (("one", 1), ("two", 2)))
    run_recipe(recipe(stages=stages, held_out=()), tmp_path / "run", workers=0)
    assert (tmp_path / "run/quarantine.jsonl").read_bytes().count(b"\n") == 1
