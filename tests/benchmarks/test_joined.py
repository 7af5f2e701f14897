"""Boxes of crops, joined: cutting pictures and joining what was cut gives back what they show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mini_internvl import report as reports
from mini_internvl.benchmarks import own
from mini_internvl.benchmarks._joined import Whole, join
from mini_internvl.domains._annotated import Picture
from mini_internvl.domains._annotated._crops import crop
from mini_internvl.domains._own import build
from mini_internvl.evaluate.questions import read_questions
from mini_internvl.inputs import boxes
from mini_internvl.records import Prediction

SIDE = 200


def cut(objects, size, folder):
    """(corners, boxes in thousandths) of the crops of a picture."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", size).save(folder / "a.png")
    whole = Picture(id="a", image=str(folder / "a.png"), size=size, objects=[("tree", box) for box in objects])
    return [
        (part.corners, [boxes.to_thousand(box, *part.size) for _, box in part.objects])
        for part in crop(whole, SIDE, folder / "crops")
    ]


def f1(gold, answered, size):
    return Whole(picture="a", phrase="tree", size=size, gold=gold, answered=answered, crops=1).f1(0.5)


@st.composite
def apart(draw):
    """A picture's size, and boxes on a grid so that none overlap."""
    size = draw(st.tuples(st.integers(201, 700), st.integers(201, 700)))
    found = []
    for column in range(size[0] // 70):
        for row in range(size[1] // 70):
            if draw(st.booleans()):
                x, y = 70 * column + draw(st.integers(0, 15)), 70 * row + draw(st.integers(0, 15))
                found.append((x, y, x + draw(st.integers(20, 50)), y + draw(st.integers(20, 50))))
    return size, found


@given(apart())
def test_objects_that_were_cut_are_found_once_in_the_whole_picture(tmp_path_factory, drawn):
    size, objects = drawn
    found = join(cut(objects, size, tmp_path_factory.mktemp("cut")))
    assert len(found) <= len(objects)
    if objects:
        assert f1(objects, found, size) >= 1 - 1 / len(objects)


def test_an_object_across_a_border_is_one_and_neighbours_are_two(tmp_path):
    across, beside, below = (170, 20, 230, 80), (20, 20, 80, 80), (90, 20, 150, 80)
    parts = cut([across, beside, below], (400, 200), tmp_path)
    assert [len(found) for _, found in parts] == [3, 1]
    found = sorted(join(parts))
    assert [[round(edge) for edge in box] for box in found] == [[20, 20, 80, 80], [90, 20, 150, 80], [170, 20, 230, 80]]
    assert join([((0, 0, 100, 100), [(100, 100, 900, 900), (110, 100, 900, 900)])]) == [
        (10, 10, 90, 90),
        (11, 10, 90, 90),
    ]  # an answer's own boxes are left as they are
    assert join([]) == []


def labelled(folder: Path, count: int = 10) -> Path:
    """Photographs in COCO's form, 400 x 200, three trees each."""
    trees = [(170, 20, 60, 60), (20, 20, 60, 60), (300, 90, 70, 80)]
    for number in range(count):
        Image.new("RGB", (400, 200), (9 * number, 90, 90)).save(folder / f"{number}.png")
    images = [{"id": n, "file_name": f"{n}.png", "width": 400, "height": 200} for n in range(count)]
    found = [
        {"id": 9 * n + k, "image_id": n, "category_id": 1, "bbox": list(box), "area": 9, "iscrowd": 0}
        for n in range(count)
        for k, box in enumerate(trees)
    ]
    content = {"images": images, "annotations": found, "categories": [{"id": 1, "name": "tree"}]}
    (folder / "trees.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "trees.json"


@pytest.fixture
def asked(tmp_path):
    path = tmp_path / "photos"
    path.mkdir()
    return list(own.items(build(labelled(path), tmp_path / "run", crop=SIDE)))


def answered(items, text=lambda item: item.reference["answer"]):
    return own.score(items, [Prediction(item_id=item.id, text=text(item)) for item in items])


def test_answers_about_crops_are_scored_in_the_whole_picture(asked):
    perfect = answered(asked)
    assert perfect.values["boxes/picture_f1"] == 100
    assert perfect.counts["boxes/picture_f1"] == 1
    none = answered(asked, lambda item: "none" if "crop" in item.reference else item.reference["answer"])
    assert none.values["boxes/picture_f1"] == 0
    crops = [item for item in asked if "crop" in item.reference]
    assert len(crops) == 2
    assert [item.reference["crop"]["corners"] for item in crops] != []
    assert "boxes/picture_f1" not in answered([item for item in asked if item is not crops[0]]).values
    [whole] = own.wholes((item.reference, item.reference["answer"]) for item in asked)
    assert (whole.phrase, whole.size, len(whole.gold), whole.crops) == ("tree", (400, 200), 3, 2)


def test_rows_without_crops_have_no_pictures(tmp_path):
    path = tmp_path / "photos"
    path.mkdir()
    items = list(own.items(build(labelled(path), tmp_path / "run")))
    assert "boxes/f1" in answered(items).values
    assert "boxes/picture_f1" not in answered(items).values
    assert not (tmp_path / "run/crops.json").exists()


def test_the_report_shows_whole_pictures_with_true_and_answered_boxes(tmp_path):
    pytest.importorskip("jinja2")
    path = tmp_path / "photos"
    path.mkdir()
    asked = read_questions("own", own, data=build(labelled(path), tmp_path / "run", crop=SIDE), split="test")
    for name, right in (("good", True), ("bad", False)):
        predictions = [
            Prediction(
                item_id=item.id, text=item.reference["answer"] if right or "crop" not in item.reference else "none"
            )
            for item in asked.items
        ]
        asked.write(tmp_path / name, predictions, asked.result(predictions, {"name": name, "path": "", "sha256": ""}))
    page = reports.build(tmp_path / "good", tmp_path / "bad").read_text(encoding="utf-8")
    assert "Whole pictures: 1" in page
    section = page.partition("Whole pictures: 1")[2].partition("</details>")[0]
    assert [section.count(f'<rect class="{role}" x="') for role in ("true", "this", "other")] == [3 + 1, 3 + 1, 1]
    assert "3 boxes, F1 100.0" in section
    assert "0 boxes, F1 0.0" in section
    assert "data:image/jpeg" in section
