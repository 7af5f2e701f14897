"""Moments in 8 bits and frozen weights in 4: what they hold, that they train, stop and go on, and what is saved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from mini_internvl.engine import load
from mini_internvl.model.lora import LoraLinear, lora_layers
from mini_internvl.recipes import LoraRecipe, RecipeError
from mini_internvl.records import Interrupted
from mini_internvl.train.initial import open_initial
from mini_internvl.train.learner import Learner
from mini_internvl.train.log import read_log
from mini_internvl.train.machines import find_machine
from mini_internvl.train.nf4 import Nf4LoraLinear
from mini_internvl.train.optim import make_optimizer
from mini_internvl.train.plan import Planner
from mini_internvl.train.run import run_recipe

ADAM = {"optimizer": "adamw8bit"}


def stopped_and_continued(settings, tmp_path):
    """Folders of a run without a stop and of one with a stop, whose states and logs must be the same."""
    folders = tmp_path / "whole", tmp_path / "parts"
    run_recipe(settings, folders[0], workers=0)
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        run_recipe(settings, folders[1], workers=0, should_stop=lambda: next(asked) == 2)
    run_recipe(settings, folders[1], workers=0)
    first, second = (load_file(max((f / "state").iterdir()) / "state.safetensors") for f in folders)
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]
    assert (folders[0] / "metrics.jsonl").read_bytes() == (folders[1] / "metrics.jsonl").read_bytes()
    return first


def test_moments_in_8_bits_train_and_go_on(recipe, tmp_path):
    state = stopped_and_continued(recipe({**ADAM, "steps": 6}), tmp_path)
    names = [name for name in state if name.startswith("optimizer.state1.")]
    bits = {name: state[name].element_size() * 8 for name in names}
    assert bits["optimizer.state1.model.language_model.embed_tokens.weight"] == 32
    assert bits["optimizer.state1.model.language_model.lm_head.weight"] == 8
    run_recipe(recipe({"steps": 6}), tmp_path / "exact", workers=0)
    ours, exact = ([row["loss"] for row in read_log(tmp_path / name / "metrics.jsonl")] for name in ("whole", "exact"))
    assert ours == pytest.approx(exact, rel=0.02)
    assert ours[-1] != exact[-1]


def test_rates_by_part_and_decay_hold_in_8_bits(start, stage):
    train = {"vision": {}, "projector": {"lr": 2e-3}, "llm": {"layers": 1}}
    optimizer = make_optimizer(Learner(start.model, stage(**ADAM, train=train)), stage(**ADAM, train=train))
    groups = {(group["lr_scale"], group["weight_decay"]) for group in optimizer.param_groups}
    assert groups == {(1.0, 0.0), (1.0, 0.01), (2.0, 0.0), (2.0, 0.01)}


def test_a_layer_in_4_bits_is_that_of_its_weights_read_back():
    torch.manual_seed(0)
    plain = LoraLinear(nn.Linear(128, 96), 4, 0.5)
    nn.init.normal_(plain.lora_A), nn.init.normal_(plain.lora_B)
    packed = Nf4LoraLinear(plain)
    assert packed.weight.nbytes == 128 * 96 / 2
    weight = packed.base_weight()
    error = (weight - plain.weight).abs().mean() / plain.weight.abs().mean()
    assert 0.01 < error < 0.15
    x = torch.randn(2, 5, 128, requires_grad=True)
    again = x.detach().clone().requires_grad_()
    y = packed(x)
    wanted = F.linear(again, weight, plain.bias) + 0.5 * F.linear(F.linear(again, plain.lora_A), plain.lora_B)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-4, atol=1e-4)


def test_adapters_on_4_bits_train_go_on_and_load_on_the_whole_base(recipe, checkpoint, tmp_path):
    settings = recipe({"steps": 6}, lora=LoraRecipe(rank=2, quantize="nf4"))
    model = open_initial(settings).model
    layers = lora_layers(model).values()
    assert all(isinstance(layer, Nf4LoraLinear) for layer in layers)
    exact = open_initial(recipe(lora=LoraRecipe(rank=2))).model
    sizes = [sum(layer.weight.nbytes for layer in lora_layers(one).values()) for one in (model, exact)]
    assert sizes[0] * 8 == sizes[1]
    state = stopped_and_continued(settings, tmp_path)
    assert not [name for name in state if name.endswith("_proj.weight")]
    losses = [row["loss"] for row in read_log(tmp_path / "whole/metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert all(type(layer) is not Nf4LoraLinear for layer in load(str(tmp_path / "whole/best")).model.modules())


def test_both_are_planned_with_less_memory(recipe):
    planner = Planner(find_machine("L4"))

    def needs(changes, **settings):
        (plan,) = planner.plan(recipe(changes, **settings))
        return plan.memory

    plain, small = needs({}), needs(ADAM)
    assert small["optimiser"] < plain["optimiser"]
    lora, packed = (needs({}, lora=LoraRecipe(rank=2, quantize=kind)) for kind in ("", "nf4"))
    assert packed["weights"] < lora["weights"]


def test_what_cannot_be_sharded_or_is_unknown_is_refused(recipe):
    with pytest.raises(RecipeError, match="adamw8bit cannot be sharded"):
        recipe(ADAM, parallel="fsdp")
    with pytest.raises(RecipeError, match=r"lora\.quantize cannot be sharded"):
        recipe(parallel="fsdp", lora=LoraRecipe(quantize="nf4"))
    with pytest.raises(RecipeError, match=r'lora\.quantize is "int4"; known: nf4'):
        LoraRecipe(quantize="int4")
