"""A small data set on disk and the recipe of a run of a few steps on it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mini_internvl.data.rows import read_samples
from mini_internvl.model.encoder import EncoderAlone, encoder_config, save_encoder
from mini_internvl.model.sizes import VIT_300M, fresh_encoder
from mini_internvl.recipes import Recipe, SourceRecipe, StageRecipe, StudentRecipe, to_dict
from mini_internvl.records import Example
from mini_internvl.train.initial import InitialCheckpoint, open_initial, sample_processor
from mini_internvl.train.learner import Learner
from mini_internvl.train.processor import SampleProcessor

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}
WIDE = {
    **VIT_300M, **TINY, "hidden_size": 24, "norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False,
    "initializer_range": 0.2,
}  # fmt: skip
"""Encoders of 16 and 24 channels, the wide one like the 6B."""


@pytest.fixture(autouse=True)
def _one_thread():
    """Fixed, so that sums come out in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five samples: one and two images, text alone, one and two answers of several lengths."""
    folder = tmp_path_factory.mktemp("rows")
    for name, size in (("a", (56, 56)), ("b", (110, 50))):
        Image.effect_noise(size, 90).convert("RGB").save(folder / f"{name}.png")

    def row(number: int, image: Any, *texts: str) -> dict[str, Any]:
        turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
        return {"id": f"r{number}", "image": image, "conversations": turns}

    content = [
        row(0, "a.png", "<image>\nWhat?", "Seven."),
        row(1, "b.png", "Where?", "To the left of the house.", "Why?", "It turns."),
        row(2, None, "Who are you?", "A model."),
        row(3, ["a.png", "b.png"], "<image> and <image>?", "Both."),
        row(4, "a.png", "<image>\nWhich word?", "no"),
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in r.items() if v}) + "\n" for r in content))
    return path


@pytest.fixture
def stage(rows: Path) -> Callable[..., StageRecipe]:
    """``stage(steps=3, ...)``: a stage on those rows."""

    def make(**changes: Any) -> StageRecipe:
        settings: dict[str, Any] = {
            "name": "one",
            "data": (SourceRecipe(kind="jsonl", path=str(rows)),),
            "steps": 6,
            "batch_size": 4,
            "micro_batch": 2,
            "max_tiles": 2,
            "lr": 1e-3,
        }
        return StageRecipe(**(settings | changes))

    return make


@pytest.fixture
def recipe(checkpoint: Path, rows: Path, stage: Callable[..., StageRecipe]) -> Callable[..., Recipe]:
    """``recipe(stage_changes, ...)``: a run of one stage from the tiny checkpoint."""

    def make(changes: dict[str, Any] | None = None, **settings: Any) -> Recipe:
        plain: dict[str, Any] = {
            "name": "tiny",
            "model": str(checkpoint),
            "stages": (stage(**(changes or {})),),
            "save_every": 2,
            "eval_every": 3,
            "held_out": (SourceRecipe(kind="jsonl", path=str(rows)),),
            "held_out_samples": 3,
        }
        return Recipe(**(plain | settings))

    return make


@pytest.fixture
def start(recipe: Callable[..., Recipe]) -> InitialCheckpoint:
    """The tiny checkpoint, loaded anew."""
    return open_initial(recipe())


@pytest.fixture
def process(start: InitialCheckpoint, stage: Callable[..., StageRecipe]) -> SampleProcessor:
    """Makes examples for it."""
    return sample_processor(start, stage(max_length=500))


@pytest.fixture
def examples(rows: Path, process: SampleProcessor) -> list[Example]:
    """Those of the rows."""
    return [process(sample) for sample in read_samples(rows)]


@pytest.fixture
def learner(start: InitialCheckpoint, stage: Callable[..., StageRecipe]) -> Callable[..., Learner]:
    """``learner(loss, ...)``: the tiny checkpoint with the losses of a stage."""

    def make(loss: Any = "answers", **changes: Any) -> Learner:
        return Learner(start.model, stage(loss=loss, **changes))

    return make


@pytest.fixture
def driven(tmp_path: Path) -> SourceRecipe:
    """Rows whose brightness is their target."""
    rows: list[dict[str, Any]] = []
    for number in range(8):
        Image.new("RGB", (56, 56), (30 * number,) * 3).save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nHow bright?"}, {"from": "gpt", "value": "So."}]
        target = {"speed": float(number), "turn": ("left", "right")[number > 3]}
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns, "targets": target})
    path = tmp_path / "driven.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceRecipe(kind="rows", path=str(path))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """A bare InternViT like the 6B's, 24 wide, with biases and scales that are not those of the start."""
    model = EncoderAlone(encoder_config(WIDE))
    model.vision_model = fresh_encoder(model.config.vision, seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "ls1", "ls2", "norm1.weight")):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return save_encoder(model, tmp_path_factory.mktemp("teacher") / "wide", dtype=torch.float32)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of seven pictures, two of them below another folder, and a text."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    draws = np.random.default_rng(0)
    for number in range(7):
        pixels = draws.integers(0, 256, (6, 9 + number, 3), dtype=np.uint8)
        place = folder / "more" if number > 4 else folder
        Image.fromarray(pixels).resize((90, 60)).save(place / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def distillation(teacher, pictures):
    """``distillation(features, stage={...}, ...)``: a distillation of a few steps into a student of 16 channels."""

    def make(features=None, stage=None, **settings):
        loss = {"features": {"teacher": str(teacher), "layers": 2, "statistics": 5} | (features or {})}
        plain = {
            "name": "one", "data": (SourceRecipe(kind="pictures", path=str(pictures)),), "steps": 4, "batch_size": 4,
            "micro_batch": 2, "lr": 1e-2, "train": ("vision",), "loss": loss,
        }  # fmt: skip
        whole = {"name": "student", "student": StudentRecipe(config=TINY), "save_every": 2, "eval_every": 2}
        return Recipe(**(whole | {"stages": (StageRecipe(**(plain | (stage or {}))),)} | settings))

    return make


@pytest.fixture
def together(tmp_path):
    """``together(recipe, folder, *flags, size=2)``: exit codes and what went to stderr, of each process."""

    def run(recipe, folder, *flags, size=2, workers=0):
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(to_dict(recipe)))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "mini_internvl", "train", path, "--output", tmp_path / folder, *flags]
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [*command, "--workers", str(workers)],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(size)
        ]
        try:
            told = [process.communicate(timeout=120)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [process.returncode for process in processes], told

    return run
