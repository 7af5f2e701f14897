"""The simulated highway: images that tell the answers, splits and builds that repeat, and the benchmark over them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mini_internvl.benchmarks import own
from mini_internvl.domains import highway_sim
from mini_internvl.records import Prediction, Sample

pytest.importorskip("highway_env")
COUNTS = {"train": 3, "validation": 1, "test": 2}
GREEN = (50, 200, 0)  # highway-env's own colour of the car


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return highway_sim.build(tmp_path_factory.mktemp("highway"), **COUNTS)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def answers(sample: Sample) -> dict[str, str]:
    """Kind of question -> answer."""
    found = {}
    for question, answer in zip(sample.messages[::2], sample.messages[1::2], strict=True):
        content = question["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        [kind] = [kind for kind, wordings in highway_sim.WORDINGS.items() if text in wordings]
        found[kind] = str(answer["content"])
    return found


def car_rows(image: Image.Image) -> tuple[float, float]:
    """Row and column of the green car's middle."""
    pixels = np.asarray(image.convert("RGB"), int)
    rows, columns = np.nonzero(np.abs(pixels - GREEN).sum(2) < 30)
    return float(rows.mean()), float(columns.mean())


def test_samples_are_complete(built: Path) -> None:
    for split, count in COUNTS.items():
        samples = [one for one in highway_sim.convert(built, split) if isinstance(one, Sample)]
        assert [sample.id for sample in samples] == [f"{split}-{index:06d}" for index in range(count)]
        for sample in samples:
            assert sample.independent
            assert answers(sample).keys() == highway_sim.WORDINGS.keys()
            images = [part for part in sample.messages[0]["content"] if part["type"] == "image"]
            assert [part["name"] for part in images] == ["Frame-1", "Frame-2", "Frame-3"]
            with Image.open(images[-1]["image"]) as image:
                assert image.size == (highway_sim.WIDTH, highway_sim.HEIGHT)
                _, column = car_rows(image)
            assert column == pytest.approx(highway_sim.WIDTH * highway_sim.EGO_PLACE, abs=2)


def test_answers_are_what_the_images_show() -> None:
    """Lanes by their white edges, the lane by the car between them; vehicles by their blue."""
    for drive in filter(None, map(highway_sim.simulate, range(100, 106))):
        image = np.asarray(drive.frames[-1].convert("RGB"), int)
        row, column = car_rows(drive.frames[-1])
        edges = np.nonzero((image == 255).all(2).mean(1) > 0.9)[0]
        width = (edges.max() - edges.min()) / drive.lanes
        assert width == pytest.approx(highway_sim.LANE * highway_sim.SCALING, abs=2)
        assert int((row - edges.min()) / width) + 1 == drive.lane
        blue = (np.abs(image - (100, 200, 255)).sum(2) < 30)[:, int(column) :]
        vehicle = 5 * 2 * highway_sim.SCALING**2  # pixels of one, with its dark edge
        assert round(blue.sum() / vehicle) == pytest.approx(drive.ahead, abs=1)
        assert (drive.ahead > 0) == bool(blue.any())


def test_the_same_seed_gives_the_same_files_and_an_interrupted_build_goes_on(built: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        assert total == 6
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        highway_sim.build(tmp_path, **COUNTS, progress=kill)
    assert not (tmp_path / "test.jsonl").exists()
    seen: list[int] = []
    highway_sim.build(tmp_path, **COUNTS, progress=lambda done, total: seen.append(done))
    assert seen[-1] == 6
    assert files_of(tmp_path) == files_of(built)
    with pytest.raises(ValueError, match="was built with seed 0, not 1"):
        highway_sim.build(tmp_path, **COUNTS, seed=1)
    with pytest.raises(ValueError, match="train is -1"):
        highway_sim.build(tmp_path, train=-1)


def test_it_draws_whatever_the_video_driver_is_and_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    drive = next(filter(None, map(highway_sim.simulate, range(20))))
    assert np.asarray(drive.frames[0]).std() > 5
    assert os.environ["SDL_VIDEODRIVER"] == "dummy"


def test_true_answers_are_right_in_the_benchmark(built: Path) -> None:
    items = list(own.items(built, "test"))
    assert len(items) == 4 * COUNTS["test"]
    assert all(item.max_tiles == 1 for item in items)
    score = own.score(items, [Prediction(item_id=item.id, text=item.reference["answer"]) for item in items])
    assert score.values["mean"] == 100
    assert own.score(items, []).values["mean"] < 60


def test_without_highway_env_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "highway_env.envs.highway_env", None)
    with pytest.raises(ValueError, match=r"pip install 'mini-internvl\[sim\]'"):
        highway_sim.build(tmp_path, train=1, validation=0, test=0)
    assert json.loads((tmp_path / "build.json").read_text())["seed"] == 0
