"""BDD-X's official files: segments, splits, frames by their time, videos, and records of the drive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mini_internvl.benchmarks import bddx_signals, bddx_text
from mini_internvl.benchmarks._bddx import clips, read_clips
from mini_internvl.benchmarks._bddx_official import FRAMES, TABLE, Drive, Segment
from mini_internvl.benchmarks._video_frames import nearest, take_frames
from mini_internvl.data import DataError, Fault
from mini_internvl.domains import bddx
from mini_internvl.files import FileError
from mini_internvl.records import Prediction

NAMES = ("start", "end", "action", "justification")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return bddx.EXAMPLE.write(tmp_path / "raw")


def write(root: Path, *segments: tuple[object, ...], videos: tuple[str, ...] = ("v",)) -> Path:
    """A folder with one row of segments for each video, all in the training split."""
    root.mkdir(exist_ok=True)
    header = ["Input.Video", *(f"Answer.{n}{name}" for n in range(1, len(segments) + 1) for name in NAMES)]
    cells = [",".join(map(str, [f"https://x/{name}.mov", *(c for row in segments for c in row)])) for name in videos]
    (root / TABLE).write_text("\n".join([",".join(header), *cells]) + "\n")
    for name in ("train", "val", "test"):
        listed = [f"{n}_{video}" for n, video in enumerate(dict.fromkeys(videos))] if name == "train" else []
        (root / f"{name}.txt").write_text("\n".join(listed))
    return root


def frames(root: Path, *names: str, video: str = "v") -> None:
    folder = root / "frames" / video
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


def test_a_segment_is_shown_in_equal_steps_and_asked_for_its_end() -> None:
    segment = Segment(id="", place="", start=12, end=20, action="", justification="")
    assert segment.moments() == [12, 13, 14, 15, 16, 17, 18, 19, 20]
    short = Segment(id="", place="", start=5, end=5, action="", justification="").moments()
    assert len(short) == FRAMES + 1
    assert (short[0], short[-1]) == (5, 6)


def test_the_nearest_frames_are_taken_and_none_twice(tmp_path: Path) -> None:
    root = write(tmp_path / "raw", (0, 4, "It drives.", "as it may."), (10, 11, "It stops.", "for a dog."))
    frames(root, "000400.jpg", "001100.jpg", "002000.jpg", "003100.jpg", "notes.jpg", "003000.txt.png")
    [row, fault] = clips(root, "train")
    assert isinstance(row, dict)
    assert [Path(name).name for name in row["frames"]] == ["000400.jpg", "001100.jpg", "002000.jpg", "003100.jpg"]
    assert (row["id"], row["description"], row["justification"]) == ("v_1", "It drives.", "as it may.")
    assert (row["speed"], row["turning_angle"]) == (None, None)
    assert isinstance(fault, Fault)
    assert (fault.place, fault.reason[:40]) == ("row 1, segment 2", "no frame of the video v at 10.00 s (in /")


def test_frames_in_order_have_a_rate(tmp_path: Path) -> None:
    root = write(tmp_path / "raw", (1, 3, "It drives.", "as it may."))
    frames(root, *(f"{number:04d}.png" for number in range(1, 9)))
    (root / "frames.json").write_text('{"fps": 2}')
    [row] = read_clips(root, "train")
    assert [Path(name).stem for name in row["frames"]] == ["0003", "0004", "0005", "0006"]  # 1.0 to 2.5 s
    (root / "frames.json").write_text('{"fps": 0}')
    with pytest.raises(DataError, match=r"fps is 0; write the frames a second"):
        read_clips(root, "train")


def test_a_video_with_two_rows_has_ids_of_its_own(tmp_path: Path) -> None:
    root = write(tmp_path / "raw", (0, 1, "It drives.", "as it may."), videos=("v", "w", "v"))
    for video in "vw":
        frames(root, "000500.jpg", video=video)
    assert [row["id"] for row in read_clips(root, "train")] == ["v_1", "w_1", "v#2_1"]


def test_benchmarks_pass_over_what_the_official_scripts_pass_over(raw: Path) -> None:
    assert sum(isinstance(row, Fault) for row in clips(raw, "train")) == 7
    with pytest.raises(DataError) as error:
        read_clips(raw, "train")
    assert "no frame of the video e5" in str(error.value)
    assert 'f6.json has no list "locations"' in str(error.value)
    assert "justification" not in str(error.value)
    (raw / "BDD-X-Dataset/train.txt").write_text("0_a1\n3_d4\n")
    assert [row["id"] for row in read_clips(raw, "train")] == ["a1_1"]
    items = list(bddx_text.items(raw, "validation"))
    assert [item.id for item in items] == ["b2_1/description", "b2_1/justification"]
    signals = list(bddx_signals.items(raw, "train"))
    assert [(item.id, item.reference["answer"]) for item in signals] == [
        ("a1_1/speed", 4.5),
        ("a1_1/turning_angle", 2.5),
    ]
    score = bddx_signals.score(signals, [Prediction(item_id="a1_1/speed", text="4.6")])
    assert score.values["speed/A0.5"] == 100
    (raw / "BDD-X-Dataset/val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt is missing"):
        list(clips(raw, "train"))


DRIVE = Drive(speeds=[(0, 4.0), (1, 6.0), (5, 2.0)], courses=[(0, 350.0), (1, 10.0), (2, 8.0)])


@pytest.mark.parametrize(
    ("moment", "speed"),
    [
        (0, 4.0),
        (0.25, 4.5),
        (1, 6.0),
        (1.4, 6.0),
        (3, None),
        (4.6, 2.0),
        (5.5, 2.0),
        (5.6, None),
        (-0.4, 4.0),
        (-1, None),
    ],
)
def test_speed_between_records(moment: float, speed: float | None) -> None:
    assert DRIVE.speed(moment) == speed


def test_turns_take_the_shorter_way_to_the_right_positive() -> None:
    assert DRIVE.turn(0, 1) == 20
    assert DRIVE.turn(0.5, 2) == 8  # the course at 0.5 s is north
    assert DRIVE.turn(1, 0) == -20
    assert DRIVE.turn(0, 9) is None
    assert Drive().turn(0, 1) is None


@given(st.floats(0, 359.9), st.floats(0, 359.9))
def test_a_turn_leads_to_the_course(first: float, last: float) -> None:
    turned = Drive(courses=[(0, first), (2, last)]).turn(0, 2)
    assert turned is not None
    assert -180 <= turned <= 180
    gap = (first + turned - last) % 360
    assert min(gap, 360 - gap) < 0.01


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"locations": [{"timestamp": 5000, "speed": 3}, {"timestamp": 6000, "speed": 5}]}, 4.0),  # no startTime
        ({"startTime": 4500, "locations": [{"timestamp": 5000, "speed": 3, "course": 9}]}, 3.0),
        ({"startTime": 5000, "locations": [{"timestamp": 5500, "speed": -1.0}]}, None),
        ({"startTime": 5000, "locations": []}, None),
        ({"startTime": 5000, "locations": None}, "no list"),
        ({"startTime": 5000, "locations": [{"speed": 3}]}, "without timestamp"),
        ({"startTime": 5000, "locations": [5]}, "no list"),
    ],
)
def test_records_of_a_drive(content: object, found: float | str | None, tmp_path: Path) -> None:
    path = tmp_path / "info" / "100k" / "val" / "v.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    if isinstance(found, str):
        with pytest.raises(FileError, match=found):
            Drive.read(tmp_path, "v")
    else:
        assert Drive.read(tmp_path, "v").speed(0.5) == found


class Shown:
    """A decoded frame, for its time."""

    def __init__(self, time: float | None) -> None:
        self.time = time


def test_the_nearest_frames_of_a_video() -> None:
    decoded = [Shown(10.0), Shown(None), Shown(10.4), Shown(11.0), Shown(12.0)]  # time begins at 10
    found = [(moment, frame.time) for moment, frame in nearest(iter(decoded), [0, 0.1, 0.3, 0.7, 0.9, 3])]
    assert found == [(0, 10.0), (0.1, 10.0), (0.3, 10.4), (0.7, 10.4), (0.9, 11.0)]


def test_frames_are_taken_from_videos_once(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    root = write(tmp_path / "raw", (0, 2, "It drives.", "as it may."), (1, 9, "It stops.", "for a dog."))
    (root / "videos").mkdir()
    with av.open(str(root / "videos" / "v.mov"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 960, 640, "yuv420p"
        for number in range(30):
            picture = Image.new("RGB", (960, 640), (8 * number, 100, 100))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    [row, fault] = clips(root, "train")
    assert isinstance(row, dict)
    assert [Path(name).name for name in row["frames"]] == [f"{250 * step:06d}.jpg" for step in range(8)]
    for name in row["frames"]:
        with Image.open(root / name) as image:
            assert image.size == (672, 448)
            red = image.convert("RGB").getpixel((300, 200))[0]
        assert red == pytest.approx(8 * int(Path(name).stem) / 100, abs=14)
    assert isinstance(fault, Fault)
    assert "v.mov" in fault.reason
    (root / "videos" / "v.mov").write_bytes(b"no video")
    again = list(clips(root, "train"))
    assert all(isinstance(row, Fault) and "v.mov cannot be read" in row.reason for row in again)
    (root / "videos" / "v.mov").unlink()
    assert next(iter(clips(root, "train"))) == row  # its frames were kept


def test_without_pyav_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(DataError, match=r"pip install 'mini-internvl\[video\]'"):
        take_frames(tmp_path / "v.mov", tmp_path / "frames", [0.0])
