"""The optimisers: Muon's orthogonal steps, which parameters it takes, and that it learns."""

from __future__ import annotations

import pytest
import torch

from mini_internvl.recipes import RecipeError
from mini_internvl.train.batches import collate
from mini_internvl.train.optim import ITERATIONS, MuonAdamW, is_hidden_matrix, make_optimizer, orthogonal
from mini_internvl.train.run import run_recipe


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 48), (2, 48, 16)])
def test_singular_values_come_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 7
    found = orthogonal(matrices)
    assert found.shape == matrices.shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert (found - u @ v).norm() / (u @ v).norm() < 0.25  # towards the polar factor, not any orthogonal matrix


def test_a_zero_gradient_gives_no_step():
    assert orthogonal(torch.zeros(1, 4, 8)).abs().max() == 0
    assert len(ITERATIONS) == 5


def test_hidden_matrices_go_to_muon_and_the_rest_to_adamw(start, stage):
    optimizer = make_optimizer(start.model, stage(optimizer="muon", weight_decay=0.1))
    assert isinstance(optimizer, MuonAdamW)
    names = {id(p): name for name, p in start.model.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    assert sum(map(len, groups)) == len(names)
    assert groups[0] == {n for n, p in start.model.named_parameters() if is_hidden_matrix(n, p)}
    assert any("qkv" in name for name in groups[0])
    assert not any("embed" in n or "lm_head" in n or "norm" in n or n.endswith("bias") for n in groups[0])


def test_the_step_has_the_stated_size_and_fused_matrices_count_as_three(start, stage):
    optimizer = make_optimizer(start.model, stage(optimizer="muon", weight_decay=0.0, lr=0.01))
    weight = start.model.vision_model.encoder.layers[0].attn.qkv.weight
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    before = weight.detach().clone()
    optimizer.step()
    for moved in (before - weight.detach()).chunk(3):
        rms = moved.pow(2).mean().sqrt().item()
        assert rms == pytest.approx(0.01 * 0.2, rel=0.35)  # a full-rank square step: 0.2 times the rate


def test_one_schedule_reaches_both(start, stage):
    optimizer = make_optimizer(start.model, stage(optimizer="muon", weight_decay=0.0))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: p.detach().clone() for name, p in start.model.named_parameters()}
    for parameter in start.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in start.model.named_parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in start.model.parameters())


def test_a_step_of_float16_gradients_that_overflow_changes_nothing(learner, stage, examples):
    one = learner(optimizer="muon")
    optimizer, scaler = make_optimizer(one, stage(optimizer="muon")), torch.amp.GradScaler("cpu")
    scaler.scale(one(collate(examples[:2], 0))["loss"]).backward()
    for parameter in one.parameters():
        parameter.grad.fill_(torch.inf)
    before = {name: parameter.detach().clone() for name, parameter in one.named_parameters()}
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert [name for name, parameter in one.named_parameters() if not torch.equal(parameter, before[name])] == []


def test_it_learns(recipe, tmp_path):
    told = []
    run_recipe(recipe({"optimizer": "muon", "steps": 12, "lr": 5e-3}), tmp_path, workers=0, on_progress=told.append)
    assert told[-1].loss < 0.7 * told[0].loss


def test_an_unknown_optimizer_is_refused(stage):
    with pytest.raises(RecipeError, match='optimizer is "sgd"; known: adamw, adamw8bit, muon'):
        stage(optimizer="sgd")
