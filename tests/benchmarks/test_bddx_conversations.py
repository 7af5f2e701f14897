"""BDD-X as conversations over cut clips: turns, signals, splits without leaks, frames of the clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mini_internvl.benchmarks import bddx_signals, bddx_text
from mini_internvl.benchmarks._bddx import clips, read_clips
from mini_internvl.data import DataError, Fault
from mini_internvl.domains import bddx
from mini_internvl.records import Sample

TRAIN, EVAL = "conversation_bddx_train.json", "conversation_bddx_eval.json"


def row(video: str, *answers: Any) -> dict[str, Any]:
    """A conversation; the questions are not read."""
    turns = [turn for answer in answers for turn in ({"from": "human", "value": "?"}, {"from": "gpt", "value": answer})]
    return {"id": f"id {video}", "video": f"BDDX_Test/video/{video}.mp4", "conversations": turns}


def write(root: Path, train: list[Any], evaluation: list[Any]) -> Path:
    root.mkdir(exist_ok=True)
    (root / TRAIN).write_text(json.dumps(train, indent=1))
    (root / EVAL).write_text(json.dumps(evaluation))
    for one in (*train, *evaluation):
        folder = root / "frames" / Path(str(one.get("video"))).stem
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("2.jpg", "1.jpg", ".1.jpg.5.part", "notes.txt"):
            Image.new("RGB", (8, 8)).save(folder / name, "JPEG")
    return root


STOP = ("The car stops.", "because of a stop sign.")


@pytest.mark.parametrize(
    ("answers", "speed", "angle"),
    [
        ((*STOP, "Speed: 1.42 Course: -0.11"), 1.42, -0.11),
        ((*STOP, "Speed: 0.0 Course: -0.0"), 0.0, 0.0),
        ((*STOP, "Speed: 23 Curvature: 0.02"), 23.0, None),
        ((*STOP, "It will go on."), None, None),
        (STOP, None, None),
    ],
)
def test_a_row_is_a_clip(answers: tuple[str, ...], speed: float | None, angle: float | None, tmp_path: Path) -> None:
    root = write(tmp_path / "raw", [], [row("a_1", *answers)])
    [found] = read_clips(root, "test")
    assert found == {
        "id": "id a_1",
        "frames": ["frames/a_1/1.jpg", "frames/a_1/2.jpg"],
        "description": "The car stops.",
        "justification": "because of a stop sign.",
        "speed": speed,
        "turning_angle": angle,
    }


def test_evaluation_clips_in_the_training_file_are_left_out(tmp_path: Path) -> None:
    names = [f"v{number // 2}_{number}" for number in range(160)]  # two clips of each video
    root = write(tmp_path / "raw", [row(name, *STOP) for name in names], [row(name, *STOP) for name in names[:20]])
    found = {split: {clip["id"] for clip in read_clips(root, split)} for split in ("train", "validation", "test")}
    assert found["test"] == {f"id {name}" for name in names[:20]}
    assert not found["train"] & found["test"]
    assert not found["validation"] & (found["train"] | found["test"])
    assert found["train"] | found["validation"] | found["test"] == {f"id {name}" for name in names}
    assert 0 < len(found["validation"]) < 20
    videos = {split: {name.rpartition("_")[0] for name in ids} for split, ids in found.items()}
    assert not videos["train"] & videos["validation"]


def test_odd_rows_are_faults(tmp_path: Path) -> None:
    odd = [row("a", "It stops."), row("b", " ", "why"), {**row("c", *STOP), "video": None}, {"video": "d.mp4"}]
    odd += [{**row("e", *STOP), "conversations": [{"from": "human"}]}, {**row("gone", *STOP), "video": "gone.mp4"}]
    root = write(tmp_path / "raw", [], odd)
    for name in (root / "frames" / "gone").iterdir():
        name.unlink()
    found = list(clips(root, "test"))
    assert all(isinstance(one, Fault) for one in found)
    assert [str(getattr(one, "reason", ""))[:36] for one in found] == [
        "the conversation has no action and r",
        "the conversation has no action and r",
        "the row names no video",
        "the conversation has no action and r",
        "a turn of the conversation has no va",
        f"neither {root}"[:36],
    ]
    (root / TRAIN).unlink()
    with pytest.raises(DataError, match=r"train\.json is missing"):
        list(clips(root, "train"))


def test_domain_and_benchmarks_read_it(tmp_path: Path) -> None:
    clip = row("v_1", *STOP, "Speed: 1.42 Course: -0.11")
    root = write(tmp_path / "raw", [clip], [{**clip, "video": "x/v_2.mp4"}])
    samples = [one for split in ("train", "validation") for one in bddx.convert(root, split)]
    assert [one.targets for one in samples if isinstance(one, Sample)] == [{"speed": 1.42, "turning_angle": -0.11}]
    assert len(list(bddx_text.items(root))) == 2
    assert [item.reference["answer"] for item in bddx_signals.items(root.parent / "raw")] == [1.42, -0.11]


def test_frames_are_taken_before_the_moment_that_is_asked_for(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    root = tmp_path / "raw"
    (root / "x").mkdir(parents=True)
    with av.open(str(root / "x" / "v_2.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 32)))))
        container.mux(stream.encode(None))
    (root / EVAL).write_text(json.dumps([{**row("v_2", *STOP), "video": "x/v_2.mp4"}]))
    [clip] = read_clips(root, "test")
    assert [int(Path(name).stem) for name in clip["frames"]] == pytest.approx([500 * n for n in range(7)], abs=60)
    (root / "x" / "v_2.mp4").unlink()
    assert read_clips(root, "test") == [clip]
    assert [path.name for path in (root / "frames").iterdir()] == ["v_2"]
