"""Layouts of annotated pictures: each reads its own example, and pictures become questions and crops."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mini_internvl import plugins
from mini_internvl.data import Fault
from mini_internvl.domains import _annotated
from mini_internvl.domains._annotated import Picture, _crops, _questions, split_named
from mini_internvl.inputs import boxes

LAYOUTS = plugins.list_names(_annotated.FOLDER)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_finds_and_reads_its_own_example(name: str, tmp_path: Path) -> None:
    layout = plugins.find(_annotated.FOLDER, name)
    path = layout.EXAMPLE.write(tmp_path) / layout.EXAMPLE.path
    assert _annotated.find_layout(path) is layout
    found = list(layout.read(path))
    pictures = [one for one in found if isinstance(one, Picture)]
    faults = [one for one in found if isinstance(one, Fault)]
    assert len(faults) == layout.EXAMPLE.faults
    assert all(fault.file.is_file() and fault.place and fault.reason for fault in faults)
    wanted = [replace(one, image=str(tmp_path / one.image)) for one in layout.EXAMPLE.pictures]
    assert [replace(one, objects=()) for one in pictures] == [replace(one, objects=()) for one in wanted]
    for one, other in zip(pictures, wanted, strict=True):
        assert [name for name, _ in one.objects] == [name for name, _ in other.objects]
        assert [box for _, box in one.objects] == [pytest.approx(box) for _, box in other.objects]


def test_what_is_no_layout_is_none(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('{"images": ["a.png"], "messages": []}\n', encoding="utf-8")
    (tmp_path / "notes.txt").write_text("0 trees\n", encoding="utf-8")
    (tmp_path / "settings.yaml").write_text("names: [a]\n", encoding="utf-8")
    for path in (tmp_path, tmp_path / "rows.json", tmp_path / "gone"):
        assert _annotated.find_layout(path) is None


def test_the_file_that_describes_a_yolo_folder_stands_for_it(tmp_path: Path) -> None:
    layout = plugins.find(_annotated.FOLDER, "yolo")
    folder = layout.EXAMPLE.write(tmp_path)
    assert _annotated.find_layout(folder / "data.yaml") is layout
    assert list(layout.read(folder / "data.yaml")) == list(layout.read(folder))


def test_yolo_names_are_texts_and_odd_labels_end_nothing(tmp_path: Path) -> None:
    layout = plugins.find(_annotated.FOLDER, "yolo")
    (tmp_path / "data.yaml").write_text("names: [no, yes, 2]\n", encoding="utf-8")
    good = b"0 .5 .5 .2 .2\n1 .5 .5 .2 .2\n2 .5 .5 .2 .2\n"
    odd = (
        b"1 -0.003 0.5 0.004 0.1",
        b"x y",
        b"0 nan nan nan nan",
        b"0 1e400 .5 .1 .1",
        b"-1 .5 .5 .1 .1",
        b"\xff\xfe0",
    )
    for number, label in enumerate((b"", *odd)):
        Image.new("RGB", (60, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_bytes(good + label)
    found = list(layout.read(tmp_path))
    pictures = {one.id: one for one in found if isinstance(one, Picture)}
    assert [name for name, _ in pictures["0"].objects] == ["no", "yes", "2"]
    faults = [(one.file.name, one.place) for one in found if isinstance(one, Fault)]
    assert faults == [*((f"{number}.txt", "line 4") for number in range(1, 6)), ("6.png", "file")]
    doubtful = [sorted(pictures[str(number)].unasked) for number in range(6)]
    assert doubtful == [[], ["yes"], ["2", "no", "yes"], ["no"], ["no"], ["2", "no", "yes"]]


def test_names_of_files_tell_splits() -> None:
    named = {"instances_val2017": "validation", "train": "train", "my_training_rows": "train", "Test": "test"}
    assert {name: split_named(name) for name in named} == named
    assert [split_named(name) for name in ("contest", "images", "trainval")] == ["", "", ""]


TREES = Picture(
    id="a/1",
    image="1.png",
    size=(200, 100),
    objects=[("palm_tree", (100, 50, 150, 100)), ("palm_tree", (0, 0, 50, 50)), ("car", (10, 10, 20, 20))],
)


def asked(picture: Picture, classes: list[str], seed: int = 0) -> dict[str, str]:
    found = {}
    for sample in _questions.samples(picture, classes, seed=seed):
        texts = [
            said["content"] if isinstance(said["content"], str) else said["content"][-1]["text"]
            for said in sample.messages
        ]
        found.update(zip(texts[::2], texts[1::2], strict=True))
    return found


def test_boxes_become_questions_of_three_kinds() -> None:
    found = asked(TREES, ["car", "palm_tree", "ship"])
    presence = [(text, answer) for text, answer in found.items() if "yes or no" in text]
    assert sorted(answer for _, answer in presence) == ["no", "yes"]
    assert {text: answer for text, answer in found.items() if (text, answer) not in presence} == {
        _questions.COUNT.format("car"): "1",
        _questions.COUNT.format("palm tree"): "2",
        "Detect <ref>car</ref>": "<ref>car</ref><box>[[50, 100, 100, 200]]</box>",
        "Detect <ref>palm tree</ref>": "<ref>palm tree</ref><box>[[0, 0, 250, 500], [500, 500, 750, 1000]]</box>",
    }
    empty = asked(replace(TREES, objects=()), ["car"])
    assert empty == {_questions.PRESENCE.format("car"): "no", _questions.COUNT.format("car"): "0"}


def test_presence_is_asked_of_as_many_absent_classes_as_present_ones() -> None:
    said = Counter(
        answer
        for seed in range(20)
        for asked_for, answer in asked(TREES, ["car", "palm_tree", *"abcdefgh"], seed).items()
        if "yes or no" in asked_for
    )
    assert said["yes"] == said["no"] == 40


def test_nothing_is_asked_of_a_class_whose_objects_are_not_all_known() -> None:
    doubtful = replace(TREES, unasked=frozenset({"palm_tree", "ship"}))
    found = asked(doubtful, ["car", "palm_tree", "ship"])
    assert found
    assert not any("palm tree" in text or "ship" in text for text in found)


@pytest.mark.parametrize("box", [(300, 0, 310, 9), (-9, 0, 0, 9), (0, 100, 9, 120), (0, 0, float("nan"), 9)])
def test_a_box_outside_its_picture_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="is outside the image of 200x100 pixels"):
        replace(TREES, objects=[("car", box)])
    assert replace(TREES, objects=[("car", (-5, 50, 900, 900))]).objects


def test_odd_coco_files_are_told_where_they_are_odd(tmp_path: Path) -> None:
    layout = plugins.find(_annotated.FOLDER, "coco")
    Image.new("RGB", (60, 40)).save(tmp_path / "1.png")
    place = {"file_name": "1.png"}
    content = {
        "images": [
            {"id": [1], **place},
            {"id": 2, **place},
            {"id": 3, **place},
            {"id": 3, **place},
            {"id": 4, **place},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": [2], "name": "dog"}],
        "annotations": [
            {"image_id": 2, "category_id": 1, "bbox": [0, 0, float("nan"), 9]},
            {"image_id": 2, "category_id": 1, "bbox": [0, 0, float("inf"), 9]},
            {"image_id": [2], "category_id": 1, "bbox": [0, 0, 9, 9]},
            {"image_id": 4, "category_id": 1, "bbox": [70, 0, 9, 9]},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    found = list(layout.read(tmp_path / "a.json"))
    assert [(one.id, one.objects, one.unasked) for one in found if isinstance(one, Picture)] == [
        ("2", [], frozenset({"cat"}))
    ]
    places = ["annotation 1", "annotation 2", "annotation 3", "image 1", "image 3", "image 4", "image 5"]
    assert [one.place for one in found if isinstance(one, Fault)] == places


def test_too_many_boxes_are_counted_and_not_asked_for() -> None:
    crowd = replace(TREES, objects=[("tree", (n, n, n + 9, n + 9)) for n in range(_questions.MOST_BOXES + 1)])
    found = asked(crowd, ["tree"])
    assert found[_questions.COUNT.format("tree")] == "41"
    assert not any(text.startswith("Detect") for text in found)
    assert _questions.crowded(crowd) == 1


def test_crops_take_their_boxes_along(tmp_path: Path) -> None:
    image = tmp_path / "1.png"
    Image.effect_noise((200, 100), 90).convert("RGB").save(image)
    picture = replace(TREES, image=str(image), objects=[("a", (90, 20, 120, 40)), ("b", (10, 10, 20, 20))])
    left, right = _crops.crop(picture, 100, tmp_path / "crops")
    assert [name for name, _ in left.objects] == ["b"]  # a third of "a" is too little
    assert right.objects == [("a", (0, 20, 20, 40))]
    for part in (left, right):
        with Image.open(part.image) as opened:
            assert opened.size == part.size == (100, 100)
    written = Path(left.image).stat().st_mtime_ns
    assert list(_crops.crop(picture, 100, tmp_path / "crops")) == [left, right]
    assert Path(left.image).stat().st_mtime_ns == written
    assert list(_crops.crop(picture, 200, tmp_path)) == [picture]
    image.write_bytes(b"")
    Image.new("RGB", (200, 100), "red").save(image)
    with Image.open(next(iter(_crops.crop(picture, 100, tmp_path / "crops"))).image) as changed:
        assert changed.convert("RGB").getpixel((50, 50))[0] > 200
        assert changed.convert("RGB").getpixel((50, 50))[1] < 50
    other = replace(picture, image=str(tmp_path / "1.tif"))
    Image.new("RGB", (200, 100), "blue").save(other.image)
    assert next(iter(_crops.crop(other, 100, tmp_path / "crops"))).image != left.image
    with pytest.raises(ValueError, match=r"1\.png is 200x100; its annotations say \(100, 200\)"):
        list(_crops.crop(replace(picture, size=(100, 200)), 90, tmp_path / "others"))


@given(st.integers(1, 500), st.integers(1, 200))
def test_crops_cover_a_side_without_a_gap(length: int, side: int) -> None:
    starts = _crops._starts(length, side)
    assert starts[0] == 0
    assert starts[-1] + side >= length
    assert starts[-1] + min(side, length) == length
    assert all(0 < two - one <= side for one, two in itertools.pairwise(starts))


def test_boxes_reach_the_model_in_thousandths() -> None:
    [(_, found)] = boxes.parse(asked(TREES, ["car"])["Detect <ref>car</ref>"])
    assert found == [(50, 100, 100, 200)]
