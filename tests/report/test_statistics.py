"""What rows hold, in numbers: the same whoever counts, and drawn so that every row is in a bar."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jinja2")

from mini_internvl.report.statistics import distribution


def turns(*said):
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(said)]


@pytest.fixture
def path(tmp_path):
    Image.effect_noise((120, 80), 60).convert("RGB").save(tmp_path / "a.png")
    rows = [{"image": "a.png", "source": "signs", "conversations": turns("What?", "Stop")} for _ in range(6)]
    rows += [{"source": "talk", "conversations": turns("Hi", "No", "Sure?", "y" * 80)} for _ in range(3)]
    rows += [{"id": "faulty"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_are_counted_by_source_and_answer(minivl, checkpoint, path):
    arguments = ["data", "stats", path, "--model", checkpoint, "--max-tiles", 4, "--json"]
    found, again = (json.loads(minivl(*arguments, "--workers", count)[1]) for count in (1, 2))
    assert found == again
    assert (found["summary"]["rows"], found["summary"]["usable"], found["summary"]["images"]) == (10, 9, 6)
    assert {name: one["rows"] for name, one in found["sources"].items()} == {"signs": 6, "talk": 3}
    assert found["sources"]["signs"]["tiles"] == 6 * 5
    assert sum(one["tokens"] for one in found["sources"].values()) == found["summary"]["tokens"]
    assert found["answers"] == {"Stop": 6, "No": 3}
    assert found["long answers"] == 3
    spreads = found["summary"]["spreads"]
    assert (spreads["turns"]["smallest"], spreads["turns"]["largest"]) == (2, 4)
    assert spreads["answer characters"]["largest"] == 82


def test_the_table_and_the_page(minivl, checkpoint, path, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = minivl("data", "stats", path, "--model", checkpoint, "--output", page, "--workers", 1)
    assert code == 0, err
    assert "signs" in out
    assert "66.7%" in out
    assert "all others" in out
    text = page.read_text()
    assert text.count("<svg") >= 5
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)


@pytest.mark.parametrize(
    "values", [[1], [3, 3, 3], [0, 0, 7], list(range(100)), [5] * 500 + [90_000], [10_000, 20_000]], ids=str
)
def test_every_row_is_in_a_bar(values):
    chart = distribution("Tokens", "tokens", np.array(values))
    assert chart is not None
    counts = [int(text.replace(",", "")) for text in re.findall(r"<title>[^<]*: ([\d,]+)</title>", chart.svg)]
    assert sum(counts) == len(values)
    assert f"largest {max(values):,}" in chart.note


def test_nothing_is_drawn_of_no_values():
    assert distribution("Tokens", "tokens", np.array([], int)) is None
    assert distribution("Tiles", "tiles", np.zeros(5, int)) is None
