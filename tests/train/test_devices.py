"""A training step without values, for nano and the released sizes: nothing waits for values or stays on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mini_internvl
from mini_internvl.model.checkpoint import read_config
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.decoder import KVCache
from mini_internvl.model.sizes import official_config
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import SourceRecipe, StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train import initial, run_folder
from mini_internvl.train.batches import to_device
from mini_internvl.train.learner import Learner
from mini_internvl.train.optim import make_optimizer

SIZES = ["nano", "1B", *(pytest.param(size, marks=pytest.mark.slow) for size in ("2B", "4B"))]


def configured(size: str) -> VLMConfig:
    if size == "nano":
        return read_config(Path(mini_internvl.__file__).parent / "nano")
    return VLMConfig.from_official(official_config(size))


def batch_of(config: VLMConfig) -> Batch:
    """Two rows, padded: independent questions about a tile, and a conversation of two packed documents."""
    tokens, image = config.tokens_per_tile, config.image_token_id or 9
    length = 2 + tokens + 20
    ids = torch.ones(2, length, dtype=torch.int64)
    ids[:, 2 : 2 + tokens] = image
    labels = torch.full((2, length), -100)
    labels[:, -16:-4] = 5
    segments = torch.zeros(2, length, dtype=torch.int64)
    segments[0, -18:-10], segments[0, -10:] = 1, 2
    documents = torch.zeros(2, length, dtype=torch.int64)
    documents[1, -9:] = 1
    side = config.image_size
    return Batch(
        sample_ids=("a", "b"),
        input_ids=ids,
        labels=labels,
        attention_mask=torch.ones_like(ids),
        position_ids=torch.arange(length).expand(2, -1),
        segment_ids=segments,
        document_ids=documents,
        tiles=torch.zeros(2, side, side, 3, dtype=torch.uint8),
    )


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
    batch = to_device(batch_of(config), torch.device("meta"))
    loss = learner(batch)["loss"]
    assert loss.is_meta
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()


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
