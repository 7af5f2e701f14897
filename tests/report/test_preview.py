"""The pages that show data: every row with its tiles, boxes and tokens, and what rows hold in numbers."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from mini_internvl.data import Fault
from mini_internvl.data.rows import read_rows
from mini_internvl.report import preview
from mini_internvl.train.initial import data_processor

jinja2 = pytest.importorskip("jinja2")


def turns(*said):
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(said)]


@pytest.fixture
def path(tmp_path):
    Image.effect_noise((120, 80), 60).convert("RGB").save(tmp_path / "a.png")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "b.png")
    found = "<ref>disc</ref><box>[[100, 250, 500, 750]]</box>"
    rows = [
        {"id": "one", "image": "a.png", "conversations": turns("<image>\nWhere is the <b>disc</b>?", found)},
        {
            "id": "two",
            "image": ["a.png", "b.png"],
            "conversations": turns("<image><image>\nSame?", "No.", "Why?", "So."),
        },
        {"id": "odd", "conversations": turns("Hi", "  ")},
        {"id": "bad", "image": "none.png", "conversations": turns("What?", "A cat.")},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def shown(path, checkpoint):
    process = data_processor(str(checkpoint), max_tiles=4, max_length=512)
    return [preview._shown(sample, process) for sample in read_rows(path)], process


def test_a_row_is_shown_with_its_grid_boxes_and_size(shown):
    (one, two, odd, bad), _ = shown
    (image,) = one.images
    assert (image.width, image.height, image.columns, image.rows, image.tiles, image.tokens) == (120, 80, 2, 2, 5, 20)
    assert image.cuts == [(0.5, 0.0, 0.5, 1.0), (0.0, 0.5, 1.0, 0.5)]
    assert image.boxes == [(0.1, 0.25, 0.5, 0.75)]
    assert one.labels == ["disc"]
    assert [(part.columns, part.rows, part.name) for part in two.images] == [(2, 1, "Image-1"), (1, 1, "Image-2")]
    assert odd.odd == ["an answer holds only spaces; write the answer or take the row out"]
    assert "none.png is missing" in bad.fault


def test_runs_are_the_prompt_and_what_is_learnt_of_it(shown):
    rows, process = shown
    for row, answers in ((rows[0], ["<ref>disc</ref><box>[[100, 250, 500, 750]]</box>"]), (rows[1], ["No.", "So."])):
        learnt = [run.text for run in row.runs if run.kind == "learnt"]
        assert learnt == [answer + process.processor.template.sep for answer in answers]
        assert sum(run.tokens for run in row.runs) == row.tokens
        assert sum(run.tokens for run in row.runs if run.kind == "learnt") == row.supervised
        per_tile = process.processor.config.tokens_per_tile
        assert sum(run.tokens for run in row.runs if run.kind == "visual") == row.tiles * per_tile
    assert "Where is the <b>disc</b>?" in "".join(run.text for run in rows[0].runs)


def test_the_page_holds_all_and_needs_nothing(minivl, checkpoint, path, tmp_path):
    page = tmp_path / "page.html"
    model = ["--model", checkpoint, "--workers", 1]
    code, out, err = minivl("data", "preview", path, *model, "-n", 9, "--output", page)
    assert (code, out.strip()) == (0, str(page)), err
    text = page.read_text()
    assert text.count("<article") == 4
    assert text.count("data:image/jpeg;base64,") == 3
    assert "&lt;b&gt;disc" in text
    assert "<b>disc" not in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert minivl("data", "preview", path, *model, "-n", 2, "--seed", 1, "--output", page)[0] == 0
    assert page.read_text().count("<article") == 2


def test_a_fault_is_told_with_its_place(path, checkpoint):
    process = data_processor(str(checkpoint), max_tiles=4, max_length=512)
    row = preview._shown(Fault(file=path, place="line 7", reason="not valid JSON"), process)
    assert (row.where, row.fault) == (f"{path}:7", "not valid JSON")
