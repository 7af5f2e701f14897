"""What a GPU needs, shown without one: nothing stays on the CPU or waits for values.

A whole training step runs without values, on ``meta``; the forward of training on a fake CUDA device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mini_internvl
from mini_internvl.model.cache import KVCache
from mini_internvl.model.checkpoint import read_config
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import official_config
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import SourceRecipe, StageRecipe
from mini_internvl.records import Batch, Example
from mini_internvl.train import initial, run_folder
from mini_internvl.train.batches import blank_batch, collate, packed_batch, to_device
from mini_internvl.train.learner import Learner
from mini_internvl.train.optim import make_optimizer
from mini_internvl.train.parts import set_drop_path
from tests.fake_cuda import CUDA, FakeCuda, on_cuda

SIZES = ["nano", "1B", *(pytest.param(size, marks=pytest.mark.slow) for size in ("2B", "4B"))]


def configured(size: str) -> VLMConfig:
    if size == "nano":
        return read_config(Path(mini_internvl.__file__).parent / "nano")
    raw = official_config(size)
    if size == "4B":  # its factors come with the checkpoint
        raw["llm_config"]["rope_scaling"] = {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    return VLMConfig.from_official(raw)


def example_of(config: VLMConfig, *, tiles: int = 0, questions: int = 0) -> Example:
    """A conversation, or independent questions, about so many tiles."""
    side, visual = config.image_size, tiles * config.tokens_per_tile
    ids = torch.ones(2 + visual + 8 * max(1, questions), dtype=torch.int64)
    ids[2 : 2 + visual] = config.image_token_id or 9
    labels = torch.full_like(ids, -100)
    labels[-3:] = 5
    segments = torch.zeros_like(ids)
    segments[2 + visual :] = torch.arange(questions).repeat_interleave(8) + 1 if questions else 0
    return Example(
        sample_id="a",
        input_ids=ids,
        labels=labels,
        tiles=torch.zeros(tiles, side, side, 3, dtype=torch.uint8),
        segment_ids=segments if questions else None,
    )


def batches_of(config: VLMConfig) -> dict[str, Batch]:
    image, text = example_of(config, tiles=2), example_of(config)
    questions = example_of(config, tiles=1, questions=2)
    return {
        "images": collate([image, text], 0),
        "text": collate([text, text], 0),
        "questions": collate([questions, questions], 0),
        "packed": packed_batch([image, text, questions]),
        "blank": blank_batch(config.image_size),
    }


@pytest.mark.parametrize("size", SIZES)
def test_a_training_step_needs_no_values(size):
    config = configured(size)
    with torch.device("meta"):
        model = InternVL(config).train()
    model.image_token_id = config.image_token_id or 9
    stage = StageRecipe(
        name="one", data=(SourceRecipe(kind="jsonl", path="rows.jsonl"),), steps=1, batch_size=2, lr=1e-3
    )
    learner = Learner(model, stage)
    optimizer = make_optimizer(learner, stage)
    batch = to_device(batches_of(config)["packed"], torch.device("meta"))
    loss = learner(batch)["loss"]
    assert loss.is_meta
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()


@pytest.mark.parametrize("size", ["nano", "1B", "2B", "4B"])
def test_the_forward_of_training_stays_on_a_gpu(size):
    """In the sizes' own widths, with two blocks."""
    config = configured(size)
    config = replace(config, vision=replace(config.vision, layers=2), llm=replace(config.llm, layers=2))
    stage = StageRecipe(name="one", data=(SourceRecipe(kind="jsonl", path="rows.jsonl"),), steps=1, drop_path=0.1)
    with torch.device("meta"):
        model = InternVL(config)
    model.image_token_id = config.image_token_id or 9
    with FakeCuda():
        learner = Learner(on_cuda(model), stage).train()
        set_drop_path(model, stage.drop_path)
        for name, batch in batches_of(config).items():
            assert learner(to_device(batch, CUDA))["loss"].device == CUDA, name


def test_a_batch_that_is_not_moved_is_found():
    config = configured("nano")
    stage = StageRecipe(name="one", data=(SourceRecipe(kind="jsonl", path="rows.jsonl"),), steps=1)
    with torch.device("meta"):
        model = InternVL(config).train()
    with FakeCuda():
        learner = Learner(on_cuda(model), stage)
        batch = to_device(batches_of(config)["questions"], CUDA)
        learner(batch)
        for name in ("input_ids", "position_ids", "tiles"):
            left = replace(batch, **{name: getattr(batches_of(config)["questions"], name)})
            with pytest.raises(RuntimeError, match="same device"):
                learner(left)


@pytest.mark.parametrize("size", SIZES)
def test_no_tensor_of_a_forward_stays_on_the_cpu(size):
    """An operation on a tensor of the CPU and one of another device raises; ``meta`` is the other device."""
    config = configured(size)
    with torch.device("meta"):
        model = InternVL(config).eval()
        ids = torch.ones(2, 300 + config.tokens_per_tile, dtype=torch.int64)
        tiles = torch.zeros(1, 3, config.image_size, config.image_size)
        cache = KVCache(config.llm, 2, 400 + config.tokens_per_tile, dtype=torch.float32, device=ids.device)
        mask = torch.ones_like(ids)
    model.image_token_id = config.image_token_id or 9
    with torch.no_grad():
        assert model(ids, tiles).is_meta
        assert model(ids, tiles, mask).shape[:2] == ids.shape
        model(ids, tiles, cache=cache)
        assert model(ids[:, :1], cache=cache).is_meta
        positions = mask.cumsum(1)
        assert model.hidden(ids, tiles, position_ids=positions, segment_ids=mask, document_ids=mask).is_meta


def test_a_run_loads_its_model_on_its_own_device(recipe, monkeypatch):
    """``meta`` stands for the GPU that ``auto`` finds."""
    found = {"auto": torch.device("meta"), "cpu": torch.device("cpu")}
    monkeypatch.setattr(initial, "resolve_device", found.__getitem__)
    for name, device in found.items():
        model = initial.open_initial(recipe(device=name)).model
        assert {tensor.device for tensor in model.parameters()} == {device}


@pytest.mark.parametrize(("device", "precision"), [("auto", "bf16"), ("cpu", "fp32")])
def test_the_precision_is_that_of_the_device_that_trains(recipe, tmp_path, monkeypatch, device, precision):
    """A GPU that is fast with bfloat16 says nothing of a run on the CPU beside it."""
    monkeypatch.setattr(run_folder, "resolve_device", lambda name: torch.device("cuda" if name == "auto" else name))
    monkeypatch.setattr(run_folder, "fast_bfloat16", lambda asked: asked.type == "cuda")
    assert run_folder.check_folder(recipe(device=device, precision="auto"), tmp_path).precision == precision
