"""Adapters on the layers: nothing changes at first, only A and B learn, merged equals unmerged, names stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mini_internvl.model.checkpoint import load_model, save_model
from mini_internvl.model.lora import (
    LoraConfig,
    LoraLinear,
    adapter_parameters,
    add_lora,
    lora_layers,
    lora_state,
    merge_lora,
    set_dropout,
)
from mini_internvl.recipes import LoraTargets

MODELS = Path(__file__).parents[1] / "golden/data/models"


@pytest.fixture(params=("internlm2", "phi3", "qwen2"))
def model(request):
    return load_model(MODELS / request.param)


def logits(model):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 200, (2, 18), generator=generator)
    ids[:, 3 : 3 + model.config.tokens_per_tile] = model.image_token_id
    pixels = torch.randn(2, 3, model.config.image_size, model.config.image_size, generator=generator)
    with torch.no_grad():
        return model(ids, pixels)


def fill(model):
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.normal_(0, 0.1, generator=generator)
    return model


def test_fresh_adapters_change_nothing(model):
    before, names = logits(model), set(model.state_dict())
    add_lora(model, LoraConfig(rank=3), seed=2)
    assert torch.equal(logits(model), before)
    assert set(model.state_dict()) - set(lora_state(model)) == names
    layers = lora_layers(model)
    blocks = model.config.llm.layers * 7 + model.config.vision.layers * 4
    assert len(layers) == blocks
    for layer in layers.values():
        assert layer.rank == 3
        assert layer.scale == 2
        assert layer.scale * layer.rank == 6
        assert layer.dropout == 0.05
        assert not layer.lora_B.any()
        assert 0 < layer.lora_A.abs().max() <= layer.in_features**-0.5
    assert {id(p) for p in adapter_parameters(model)} == {id(p) for p in model.parameters() if p.requires_grad}


def test_merged_equals_unmerged(model):
    plain, names = logits(model), list(model.state_dict())
    fill(add_lora(model, LoraConfig(rank=3, alpha=4)))
    before = logits(model)
    assert (before - plain).abs().max() > 0.1
    merge_lora(model)
    assert not lora_layers(model)
    assert list(model.state_dict()) == names
    assert all(type(m) is nn.Linear for m in model.modules() if isinstance(m, nn.Linear))
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)


def test_a_merged_model_is_saved_and_adapted_again(model, tmp_path):
    fill(add_lora(model, LoraConfig(rank=2)))
    before = logits(model)
    again = load_model(save_model(merge_lora(model), tmp_path))
    torch.testing.assert_close(logits(again), before, rtol=0, atol=1e-4)
    add_lora(again, LoraConfig(rank=4))
    assert {layer.rank for layer in lora_layers(again).values()} == {4}


def test_the_product_as_a_formula():
    base = nn.Linear(5, 3)
    layer = LoraLinear(base, rank=2, scale=1.5)
    assert layer.weight is base.weight
    with torch.no_grad():
        layer.lora_A.normal_()
        layer.lora_B.normal_()
    x = torch.randn(4, 5)
    expected = x @ (base.weight + 1.5 * layer.lora_B @ layer.lora_A).T + base.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.delta(), 1.5 * layer.lora_B @ layer.lora_A)
    assert "rank=2, scale=1.5" in repr(layer)


def test_dropout_is_on_the_adapters_input_while_training(model):
    fill(add_lora(model, LoraConfig(rank=2, dropout=0.5)))
    layer = next(iter(lora_layers(model).values()))
    x = torch.randn(6, layer.in_features)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    set_dropout(model, 0.0)
    assert torch.equal(layer(x), layer.eval()(x))


def test_seeds_and_parts(model):
    folder = MODELS / {"Qwen2ForCausalLM": "qwen2", "Phi3ForCausalLM": "phi3"}.get(
        model.config.llm.architecture, "internlm2"
    )
    states = [lora_state(add_lora(load_model(folder), LoraConfig(rank=2), seed=seed)) for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    config = LoraConfig(parts=("vision",), targets=LoraTargets(vision=("attn.proj",)))
    names = set(lora_layers(add_lora(model, config)))
    assert names == {f"vision_model.encoder.layers.{n}.attn.proj" for n in range(model.config.vision.layers)}


def test_a_16_bit_base_keeps_float32_adapters():
    model = load_model(MODELS / "qwen2", dtype="bfloat16")
    fill(add_lora(model, LoraConfig(rank=2)))
    assert {p.dtype for p in adapter_parameters(model)} == {torch.float32}
    before = logits(model)
    assert before.dtype == torch.bfloat16
    merge_lora(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (logits(model) - before).abs().max() < 0.1 * before.abs().max()


def test_adapters_are_not_stacked(model):
    add_lora(model, LoraConfig(rank=2))
    with pytest.raises(ValueError, match="has adapters already; merge them first"):
        add_lora(model, LoraConfig(rank=2))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"parts": ()}, "parts holds nothing"),
        ({"parts": ("projector",)}, "known parts: llm, vision"),
        ({"targets": LoraTargets(vision=("qkv",))}, "targets.vision holds"),
    ],
)
def test_configs_are_checked_when_made(fields, match):
    with pytest.raises(ValueError, match=match):
        LoraConfig(**fields)
