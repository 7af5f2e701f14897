"""Building the raw folder, and its conversion into samples."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mini_internvl.benchmarks._bddx import QUESTIONS
from mini_internvl.domains import driving_sim
from mini_internvl.domains._clips import WORDINGS

COUNTS = {"train": 4, "validation": 1, "test": 3}


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def example_clip(folder: Path) -> dict:
    """A row of the worked example, whose frames are written into the folder."""
    driving_sim.EXAMPLE.write(folder)
    return rows_of(folder)[0]


def test_rows_are_complete(clips: Path) -> None:
    rows = rows_of(clips)
    assert [row["split"] for row in rows] == ["train"] * 4 + ["validation"] + ["test"] * 3
    assert len({row["id"] for row in rows}) == 8
    for row in rows:
        assert len(row["frames"]) == 4
        assert len(row["states"]) == 5
        assert row["speed"] == round(row["states"][-1]["speed"], 2)
        change = row["states"][-1]["heading"] - row["states"][-2]["heading"]
        assert row["turning_angle"] == pytest.approx(change, abs=0.0051)
        for frame in row["frames"]:
            with Image.open(clips / frame) as image:
                assert image.size == (112, 112)


def test_splits_never_share_a_track() -> None:
    starts = sorted(driving_sim.SEEDS.values())
    span = driving_sim.SEEDS_PER_BUILD * driving_sim.MAX_SEED
    assert all(high - low >= span for low, high in itertools.pairwise(starts))


def test_same_seed_same_files_and_an_interrupted_build_goes_on(clips: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        assert total == 8
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        driving_sim.build(tmp_path, **COUNTS, progress=kill)
    assert not (tmp_path / "clips.jsonl").exists()
    part = tmp_path / "clips.part.jsonl"
    part.write_text(part.read_text() + '{"id": "train-000003", "frames": ["fra')  # a torn line
    (tmp_path / "frames/train/.000003-1.png.1-1.part").write_bytes(b"of a kill")
    seen: list[int] = []
    driving_sim.build(tmp_path, **COUNTS, progress=lambda done, total: seen.append(done))
    assert seen == [3, 4, 5, 6, 7, 8]
    assert files_of(tmp_path) == files_of(clips)


def test_a_finished_folder_is_kept_and_extended(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(clips, folder)
    before = files_of(folder)
    driving_sim.build(folder, **COUNTS)
    assert files_of(folder) == before
    driving_sim.build(folder, train=5, validation=1, test=2)
    ids = [row["id"] for row in rows_of(folder)]
    assert ids == [*(f"train-{i:06d}" for i in range(5)), "validation-000000", "test-000000", "test-000001"]


def test_other_settings_are_refused(clips: Path) -> None:
    with pytest.raises(ValueError, match="built with size 112, not 96"):
        driving_sim.build(clips, **COUNTS, size=96)
    with pytest.raises(ValueError, match="built with seed 0, not 1"):
        driving_sim.build(clips, **COUNTS, seed=1)


@pytest.mark.parametrize(
    "setting", [{"train": -1}, {"frames": 0}, {"interval": 0.03}, {"size": 3}, {"seed": -1}, {"seed": 1000}]
)
def test_settings_out_of_range_are_refused_before_anything_is_written(setting: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        driving_sim.build(tmp_path / "new", **setting)
    assert not (tmp_path / "new").exists()


def test_conversations(clips: Path) -> None:
    samples = list(driving_sim.convert(clips, "train"))
    rows = rows_of(clips)[:4]
    assert [sample.id for sample in samples] == [row["id"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        roles = [message["role"] for message in sample.messages]
        assert roles == ["user", "assistant"] * 4
        first = sample.messages[0]["content"]
        assert [part.get("name") for part in first] == ["Frame-1", "Frame-2", "Frame-3", "Frame-4", None]
        assert all(Path(part["image"]).is_file() for part in first[:4])
        answers = {message["content"] for message in sample.messages[1::2]}
        assert {row["description"], row["justification"]} <= answers
        assert {f"{row['speed']:.2f}", f"{row['turning_angle']:.2f}".replace("-0.00", "0.00")} <= answers
        asked = [first[4]["text"], *(message["content"] for message in sample.messages[2::2])]
        kinds = {kind for text in asked for kind, texts in WORDINGS.items() if text in texts}
        assert kinds == set(QUESTIONS)


def test_conversion_is_repeatable_and_mixes_the_order(tmp_path: Path) -> None:
    example = example_clip(tmp_path)
    rows = [{**example, "id": f"clip-{number}"} for number in range(60)]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = list(driving_sim.convert(tmp_path, "train"))
    assert samples == list(driving_sim.convert(tmp_path, "train"))
    firsts = [sample.messages[1]["content"] for sample in samples]
    for kind in QUESTIONS:
        answer = example[kind] if isinstance(example[kind], str) else f"{example[kind]:.2f}"
        assert firsts.count(answer) >= 6


def test_signals_that_were_not_recorded_are_not_asked(tmp_path: Path) -> None:
    example = example_clip(tmp_path)
    (tmp_path / "clips.jsonl").write_text(json.dumps({**example, "speed": None}) + "\n")
    [sample] = driving_sim.convert(tmp_path, "train")
    assert len(sample.messages) == 6


def test_without_the_simulator_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mini_internvl.domains import _car_racing

    _car_racing.quiet_environment.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "gymnasium.envs.box2d.car_racing", None)
    with pytest.raises(ValueError, match=r'pip install "mini-internvl\[sim\]"'):
        driving_sim.build(tmp_path, train=1, validation=0, test=0)
    _car_racing.quiet_environment.cache_clear()
