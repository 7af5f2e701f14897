"""RSVQA and DIOR-RSVG: prompts, the published layout, bad files, boxes for drawing."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from mini_internvl.benchmarks import dior_rsvg, rsvqa_hr, rsvqa_lr
from mini_internvl.data import DataError
from mini_internvl.records import Item, Prediction


def answered(items: list[Item], texts: list[str]) -> list[Prediction]:
    return [Prediction(item_id=item.id, text=text) for item, text in zip(items, texts, strict=True)]


def prompt(item: Item) -> str:
    return item.messages[-1]["content"][-1]["text"]


def test_prompts_and_ids(tmp_path: Path) -> None:
    for benchmark in (rsvqa_lr, rsvqa_hr, dior_rsvg):
        benchmark.EXAMPLE.write(tmp_path)
    item = next(iter(rsvqa_lr.items(tmp_path)))
    assert prompt(item) == "Is it a rural or an urban area\nAnswer the question using a single word or phrase."
    assert (item.max_tiles, item.max_new_tokens) == (12, 50)
    assert [item.id for item in rsvqa_hr.items(tmp_path, "test2")] == ["test2/0", "test2/1"]
    item = next(iter(dior_rsvg.items(tmp_path)))
    assert prompt(item) == "Detect <ref>the red ship on the left</ref>"
    assert (item.max_tiles, item.max_new_tokens) == (12, 200)
    with pytest.raises(ValueError, match='split "test3" is not known; there are: test1, test2'):
        list(rsvqa_hr.items(tmp_path, "test3"))


@pytest.mark.parametrize(("benchmark", "name"), [(rsvqa_lr, "rsvqa_lr"), (dior_rsvg, "dior_rsvg")])
def test_published_layout(benchmark: ModuleType, name: str, tmp_path: Path) -> None:
    benchmark.EXAMPLE.write(tmp_path / name)
    (tmp_path / name / "val").mkdir()
    (tmp_path / name / benchmark.FILE).rename(tmp_path / name / "val" / benchmark.FILE)
    assert list(benchmark.items(tmp_path)) != []
    assert [item.id for item in benchmark.items(tmp_path)] == [item.id for item in benchmark.items(tmp_path / name)]


def test_rsvqa_average_is_over_items_without_numbers(tmp_path: Path) -> None:
    items = list(rsvqa_lr.items(rsvqa_lr.EXAMPLE.write(tmp_path)))
    score = rsvqa_lr.score(items, answered(items, ["rural", "Yes", "x", "yes", "x", "no"]))
    assert score.values["accuracy"] == 75
    assert score.values["accuracy_all"] == 50
    assert score.values["type/presence"] == 100
    numbers = [item for item in items if item.reference["type"] == "count"]
    assert rsvqa_lr.score(numbers, []).values["accuracy"] == 0


def test_rsvqa_repeated_ids_and_bad_rows(tmp_path: Path) -> None:
    rsvqa_lr.EXAMPLE.write(tmp_path)
    path = tmp_path / rsvqa_lr.FILE
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([rows[0], rows[0]]))
    assert [item.id for item in rsvqa_lr.items(tmp_path)] == ["0", "0#2"]
    bad = [{**rows[0], "gt_answer": None}, {key: rows[0][key] for key in ("id", "image")}]
    path.write_text(json.dumps([rows[0], bad[0]]))
    with pytest.raises(
        DataError, match=r"rsvqa_l_test_instruct\.json: row 2: gt_answer is neither text nor whole number"
    ):
        list(rsvqa_lr.items(tmp_path))
    path.write_text(json.dumps([rows[0], bad[1]]))
    with pytest.raises(DataError, match="row 2: no question, gt_answer, type"):
        list(rsvqa_lr.items(tmp_path))
    path.write_text(json.dumps([rows[0], {**rows[1], "image": "9.tif"}]))
    with pytest.raises(DataError, match=r"row 2: the image 9\.tif is missing"):
        list(rsvqa_lr.items(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match=r"lacks rsvqa_l_test_instruct\.json"):
        list(rsvqa_lr.items(tmp_path))


def test_dior_boxes_and_notes(tmp_path: Path) -> None:
    items = list(dior_rsvg.items(dior_rsvg.EXAMPLE.write(tmp_path)))
    true, found = dior_rsvg.boxes(items[0], "[[100, 100, 300, 400]]")
    assert true == [(0.1, 0.1, 0.3, 0.3)]
    assert found == [pytest.approx((0.1, 0.1, 0.3, 0.4))]
    assert dior_rsvg.boxes(items[0], "none")[1] == []
    score = dior_rsvg.score(items, answered(items, ["none", "[[NaN,1,2,3]]", "[[0,500,500,1000]]", "", "[1]"]))
    assert score.values["accuracy"] == 20
    assert score.notes["unreadable"] == 3


def test_dior_bad_rows(tmp_path: Path) -> None:
    dior_rsvg.EXAMPLE.write(tmp_path)
    path = tmp_path / dior_rsvg.FILE
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**rows[0], "bbox": [1, 2, 3]}, {**rows[1], "size": [0, 4]}]))
    with pytest.raises(DataError, match="row 1: bbox is not four numbers; row 2: size is not width and height"):
        list(dior_rsvg.items(tmp_path))
