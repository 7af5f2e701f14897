"""DriveLM: points there and back, stitched images made once, splits by scene, the benchmark over held-out scenes."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mini_internvl.benchmarks import drivelm as benchmark
from mini_internvl.benchmarks._drivelm import (
    BEHAVIOURS,
    as_choices,
    example_frame,
    example_views,
    split_of,
)
from mini_internvl.data import DataError, Fault
from mini_internvl.data.check import trainable
from mini_internvl.data.files import scan_members
from mini_internvl.domains import Domain, _rows, drivelm, load_domain
from mini_internvl.inputs.messages import normalise
from mini_internvl.metrics import drivelm as metric
from mini_internvl.records import Prediction, Sample

FILE = "v1_1_train_nus.json"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return drivelm.EXAMPLE.write(tmp_path / "raw")


def samples(raw: Path, split: str = "train") -> list[Sample]:
    return [one for one in drivelm.convert(raw, split) if isinstance(one, Sample)]


def rewrite(raw: Path, content: Any) -> None:
    (raw / FILE).write_text(json.dumps(content), encoding="utf-8")


def test_a_thousand_points_go_to_the_stitched_image_and_back() -> None:
    rng = random.Random(0)
    for _ in range(1000):
        camera, x, y = rng.choice(metric.CAMERAS), rng.uniform(0, 1600), rng.uniform(0, 900)
        across, down = metric.in_stitched(camera, x, y)
        row, column = divmod(metric.CAMERAS.index(camera), metric.COLUMNS)
        assert across * 2.688 == pytest.approx(896 * (column + x / 1600))
        assert down * 0.896 == pytest.approx(448 * (row + y / 900))
        back = metric.in_camera(camera, across, down)
        assert abs(back[0] - x) < 0.1
        assert abs(back[1] - y) < 0.1


@given(st.sampled_from(metric.CAMERAS), st.floats(0, 1600), st.floats(0, 900))
def test_tags_come_back_within_half_a_thousandth(camera: str, x: float, y: float) -> None:
    """A thousandth of the stitched image is 4.8 pixels across and 1.8 down of a camera's own image."""
    tag = f"<c1,{camera},{x:.1f},{y:.1f}>"
    assert metric.odd_tags(tag) == []
    back = metric.to_cameras(metric.to_stitched(tag)).strip("<>").split(",")
    assert back[:2] == ["c1", camera]
    assert abs(float(back[2]) - x) <= 2.5
    assert abs(float(back[3]) - y) <= 1.0


@pytest.mark.parametrize(
    ("tag", "wrong"),
    [
        ("<c1,CAM_TOP,1.0,2.0>", "the camera of <c1,CAM_TOP,1.0,2.0> is unknown"),
        ("<c1,CAM_BACK,1600.1,2.0>", "outside of the camera's 1600x900 pixels"),
        ("<c1,CAM_BACK,10.0,-2.0>", "outside of the camera's 1600x900 pixels"),
        ("<c1,CAM_BACK>", "has no camera and point"),
        ("<c12>", "has no camera and point"),
    ],
)
def test_odd_tags_are_told(tag: str, wrong: str) -> None:
    [found] = metric.odd_tags(f"near {tag} and <c2,CAM_FRONT,800.0,450.0>")
    assert wrong in found


def test_images_are_made_once_and_the_same_every_time(raw: Path, tmp_path: Path) -> None:
    samples(raw)
    made = sorted((raw / "stitch").iterdir())
    assert [path.name for path in made] == ["scene1_frame1.jpg", "scene1_frame2.jpg"]
    with Image.open(made[0]) as image:
        assert (image.size, image.format) == ((2688, 896), "JPEG")
    before = made[0].stat().st_mtime_ns
    shutil.rmtree(raw / "nuscenes")  # the stitched images are enough
    assert len(samples(raw)) == 2
    assert made[0].stat().st_mtime_ns == before
    again = drivelm.EXAMPLE.write(tmp_path / "again")
    samples(again)
    assert (again / "stitch" / made[0].name).read_bytes() == made[0].read_bytes()


def test_images_made_by_a_conversion_are_no_new_records(raw: Path, tmp_path: Path) -> None:
    domain = load_domain("drivelm")

    def convert(domain: Domain) -> dict[str, dict[str, Any]]:
        return _rows.convert(domain, raw, tmp_path / "rows", max_faults=1, should_stop=lambda: False)

    def never(raw: Path, split: str) -> Iterator[Sample]:
        raise TypeError("converted again")

    found = convert(domain)
    assert [found[split]["rows"] for split in ("train", "validation")] == [2, 1]
    assert convert(replace(domain, convert=never)) == found
    (raw / FILE).write_text((raw / FILE).read_text() + " ")
    with pytest.raises(DataError, match="converted again"):
        convert(replace(domain, convert=never))


def test_stitched_images_of_others_are_taken(raw: Path) -> None:
    theirs = raw / "images" / "drivelm" / "stitch" / "scene1_frame1.jpg"
    theirs.parent.mkdir(parents=True)
    Image.new("RGB", (2688, 896)).save(theirs)
    [part, _] = samples(raw)[0].messages[0]["content"]
    assert part["image"] == str(theirs)


def test_a_damaged_view_is_a_fault_of_its_frame_alone(raw: Path) -> None:
    frames = json.loads((raw / FILE).read_text())["scene1"]["key_frames"]
    whole, odd = frames["frame1"], frames["frame2"]
    odd["image_paths"] = {**odd["image_paths"], "CAM_BACK": "../nuscenes/samples/CAM_BACK/cut.jpg"}
    rewrite(raw, {"scene1": {"key_frames": {"frame1": whole, "frame2": odd}}})
    (raw / "nuscenes/samples/CAM_BACK/cut.jpg").write_bytes(b"\xff\xd8\xff cut off")
    *_, fault = drivelm.convert(raw, "train")
    assert isinstance(fault, Fault)
    assert fault.place == "row scene1_frame2"
    assert "CAM_BACK/cut.jpg cannot be read" in fault.reason
    assert [sample.id for sample in samples(raw)] == ["scene1_frame1_0"]
    assert not list((raw / "stitch").glob(".*"))


def test_many_questions_are_several_samples_of_one_image(raw: Path) -> None:
    asked = [("planning", f"Is action {number} safe?", "Yes.", None) for number in range(40)]
    rewrite(raw, {"scene1": {"key_frames": {"f": example_frame(*asked)}}})
    found = samples(raw)
    assert [sample.id for sample in found] == ["scene1_f_0", "scene1_f_16", "scene1_f_32"]
    assert [len(sample.messages) for sample in found] == [32, 32, 16]
    texts = [turn["content"] for sample in found for turn in sample.messages if turn["role"] == "user"]
    assert [text if isinstance(text, str) else text[-1]["text"] for text in texts] == [q for _, q, *_ in asked]
    images = {sample.messages[0]["content"][0]["image"] for sample in found}
    assert images == {str(raw / "stitch" / "scene1_f.jpg")}
    for sample in found:
        assert sample.independent
        trainable(normalise(sample.messages))


def test_no_scene_is_in_two_splits() -> None:
    scenes = [f"{number:032x}" for number in range(2000)]
    shares = {split: sum(split_of(scene) == split for scene in scenes) for split in ("train", "validation", "test")}
    assert sum(shares.values()) == 2000
    assert all(60 < shares[split] < 140 for split in ("validation", "test"))


def test_held_out_scenes_are_asked_as_the_challenge_asks(raw: Path) -> None:
    items = list(benchmark.items(raw, "test"))
    assert [item.id for item in items] == [f"scene144_frame1_{number}" for number in range(4)]
    assert [item.reference["tag"] for item in items] == [[2], [0], [0], [0]]
    assert f" {items[1].reference['answer']}. Going ahead." in items[1].reference["question"]
    assert items[1].reference["answer"] in "ABCD"
    parts = items[1].messages[0]["content"]
    assert "<c1,CAM_FRONT,[500, 250]>" in parts[-1]["text"]
    assert os.fspath(parts[0]["image"]) == str(raw / "stitch" / "scene144_frame1.jpg")
    perfect = [Prediction(item_id=item.id, text=metric.to_stitched(item.reference["answer"])) for item in items]
    score = benchmark.score(items, perfect)
    assert score.values["accuracy"] == 1
    assert score.values["language"] > 0.6
    assert score.notes["dropped"] == 0
    with pytest.raises(ValueError, match="q_only"):
        list(benchmark.items(raw, "val_q_only"))


def test_the_match_question_names_every_key_object(raw: Path) -> None:
    tags = ["<c1,CAM_FRONT,800.0,450.0>", "<c2,CAM_BACK,10.0,20.0>"]
    frame = example_frame(
        ("perception", "What is near?", "A red bus.", None),
        ("perception", "What are the important objects?", f"A red bus and a tram: {', '.join(tags)}.", None),
        ("prediction", "What should be noticed?", f"Firstly {tags[0]}.", None),
        ("prediction", "What should be noticed in which order?", f"Firstly {tags[0]}, secondly {tags[1]}.", None),
        ("prediction", "Is it moving?", "Normally it would.", None),
        ("prediction", "Is it parked?", "No.", None),
        ("planning", "What actions could the ego vehicle take based on it?", "Brake.", None),
        ("planning", "What actions taken by the ego vehicle can lead to a collision with it?", "Speed up.", None),
        ("planning", "In this scenario, what are safe actions to take?", "Brake.", None),
        key_object_infos={tags[0]: {"Visual_description": "Red bus."}, tags[1]: {"Visual_description": "Tram."}},
    )
    rewrite(raw, {"scene144": {"key_frames": {"f": frame}}})
    items = list(benchmark.items(raw, "test"))
    assert [(item.reference["question"][:28], *item.reference["tag"]) for item in items] == [
        ("What are the important objec", 2),
        ("What should be noticed in wh", 3),
        ("Is it parked?", 0),
        ("What actions could the ego v", 1),
        ("What actions taken by the eg", 1),
        ("In this scenario, what are s", 1),
    ]


def test_multiple_choice_holds_the_answer_once_and_three_others() -> None:
    letters = set()
    for number, answer in enumerate(BEHAVIOURS):
        row = {"Q": "Predict the behavior of the ego vehicle.", "A": answer}
        asked = as_choices(row, f"seed {number}")
        assert asked == as_choices(row, f"seed {number}")
        assert asked["Q"].count(answer) == 1
        assert f" {asked['A']}. {answer}" in asked["Q"]
        letters.add(asked["A"])
    assert letters == set("ABCD")
    assert len(set(BEHAVIOURS)) == 21
    other = {"Q": "Predict the behavior of the ego vehicle.", "A": "It flies."}
    assert as_choices(other, "") is other


def test_scenes_are_read_one_by_one(raw: Path) -> None:
    """A scene that is no JSON, or there twice, costs itself alone; a file that is cut off tells its last scene."""
    text = json.dumps({"key_frames": {"f": example_frame(("planning", "Is [it] safe, {now}?", 'A "b\\" }.', None))}})
    (raw / FILE).write_text(f'\ufeff{{"scene1": {text}, "scene3": {{"a": nan}},\n"scene1": {text} , "scene5": {{"key')
    found = list(drivelm.convert(raw, "train"))
    assert [one.place if isinstance(one, Fault) else one.id for one in found] == [
        "scene1_f_0",
        "member 2",
        "row scene1",
        "member 4",
    ]
    assert found[0].messages[1]["content"] == 'A "b\\" }.'.strip()
    (raw / FILE).write_text("[1]")
    with pytest.raises(DataError, match="holds no JSON object"):
        list(drivelm.convert(raw, "train"))
    (raw / FILE).write_text("{ }")
    assert list(scan_members(raw / FILE)) == []


def test_the_documented_places_are_found(tmp_path: Path) -> None:
    """DriveLM's own tree: the file in a folder beside ``nuscenes``."""
    raw = drivelm.EXAMPLE.write(tmp_path / "raw")
    (raw / "QA_dataset_nus").mkdir()
    (raw / FILE).rename(raw / "QA_dataset_nus" / FILE)
    assert [sample.id for sample in samples(raw)] == ["scene1_frame1_0", "scene1_frame2_0"]
    with pytest.raises(DataError, match="lacks v1_1_train_nus"):
        list(drivelm.convert(tmp_path, "train"))
    assert set(example_views()) == {str(path.relative_to(raw)) for path in raw.rglob("*__1.jpg")}
