"""Counted operations against torch's own counter, which watches the real model run on shapes alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mini_internvl
from mini_internvl.model.checkpoint import read_config
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.flops import count_flops
from mini_internvl.model.lora import add_lora
from mini_internvl.model.sizes import official_config, shapes_only
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import LoraRecipe
from mini_internvl.records import Size
from mini_internvl.train.parts import set_trainable

NANO = Path(mini_internvl.__file__).parent / "nano"
TILES, TEXT, SUPERVISED = 2, 40, 7


def meta_model(config: VLMConfig, lora: bool = False) -> InternVL:
    with shapes_only():
        model = InternVL(config)
        if lora:
            add_lora(model, LoraRecipe(rank=8, dropout=0.0))
    return model.train()


def counted(model: InternVL) -> tuple[float, float, int]:
    """Operations forward and backward that torch counts, and the tokens of the sequence."""
    side, tokens = model.config.image_size, model.config.tokens_per_tile * TILES + TEXT
    with FlopCounterMode(display=False) as forward:
        visual = model.encode_images(torch.empty(TILES, 3, side, side, device="meta"))
        x = model.language_model.embed_tokens(torch.empty(1, tokens, dtype=torch.long, device="meta"))
        x = torch.cat([visual.flatten(0, 1)[None].to(x.dtype), x[:, visual.shape[0] * visual.shape[1] :]], 1)
        loss = model.language_model.lm_head(model.language_model(x)[:, -SUPERVISED:]).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops(), tokens


def ours(model: InternVL, tokens: int) -> tuple[float, float]:
    costs = count_flops(model)
    rest = costs.tile * TILES + costs.token * tokens + costs.supervised * SUPERVISED
    total = rest + costs.pair * tokens**2  # the counter takes causal attention for full
    return total.forward, total.backward


def sized(name: str) -> VLMConfig:
    return read_config(NANO) if name == "nano" else VLMConfig.from_official(official_config(name))


PARTS = ["vision", "projector", "llm"]
NANO_TRAINS = [PARTS, ["projector", "llm"], ["projector"], ["llm"], ["vision"]]


@pytest.mark.parametrize(
    ("size", "train"), [*(("nano", train) for train in NANO_TRAINS), ("1B", PARTS), ("1B", ["projector"])]
)
def test_operations_are_those_that_torch_counts(size, train):
    model = meta_model(sized(size))
    set_trainable(model, train)
    forward, backward, tokens = counted(model)
    assert ours(model, tokens) == (forward, backward)


@pytest.mark.parametrize("train", [["llm"], ["vision", "llm"], ["vision", "projector", "llm"]])
def test_operations_with_adapters_are_those_that_torch_counts(train):
    model = meta_model(sized("nano"), lora=True)
    set_trainable(model, train)
    forward, backward, tokens = counted(model)
    assert ours(model, tokens) == (forward, backward)


def test_a_tile_of_the_released_sizes_takes_726_gflop():
    assert count_flops(meta_model(sized("1B"))).tile.forward / 1e9 == pytest.approx(726, abs=0.5)


def test_all_that_trains_costs_about_six_operations_a_weight_and_token():
    model = meta_model(sized("1B"))
    weights = sum(p.numel() for p in model.language_model.layers.parameters())
    assert count_flops(model).token.useful == pytest.approx(6 * weights, rel=1e-3)


def test_checkpointing_computes_the_blocks_that_train_once_more():
    model = meta_model(sized("nano"))
    whole, frozen = count_flops(model, ["vision", "llm"]), meta_model(sized("nano"))
    set_trainable(frozen, ["llm"])
    assert whole.token.recomputed == whole.token.forward
    assert 0.9 * whole.tile.forward < whole.tile.recomputed < whole.tile.forward  # all but embedding and projector
    assert count_flops(frozen, ["vision", "llm"]).tile.recomputed == 0
    assert count_flops(model).token.recomputed == 0


def test_a_step_is_the_sum_of_its_samples():
    costs = count_flops(meta_model(sized("nano")))
    first, second = Size(tokens=100, supervised=9, tiles=1), Size(tokens=30, supervised=3, tiles=0)
    total = costs.step([first, second])
    assert total == costs.step([first]) + costs.step([second])
    assert costs.step([second]).forward == pytest.approx(
        (costs.token * 30 + costs.pair * (30 * 31 / 2) + costs.supervised * 3).forward
    )
