"""The loop: one loss whatever the split, schedules, freezing, and stops that name the samples."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from mini_internvl.inputs.tiles import normalise
from mini_internvl.model.flops import Flops, ModelFlops
from mini_internvl.train import loop
from mini_internvl.train.batches import collate
from mini_internvl.train.data import MixedDataset
from mini_internvl.train.log import append, cut, lengths, read_log
from mini_internvl.train.loop import (
    NonFiniteLoss,
    Run,
    held_out_loss,
    run_stage,
)
from mini_internvl.train.losses.answers import IGNORE
from mini_internvl.train.meter import Meter
from mini_internvl.train.optim import make_optimizer
from mini_internvl.train.parts import learning_rate, set_drop_path, set_trainable
from mini_internvl.train.run_folder import RunFolder
from mini_internvl.train.under_way import evaluating


def split(examples, size):
    return [collate(examples[i : i + size], 0) for i in range(0, len(examples), size)]


def accumulate(learner, batches, precision="fp32"):
    count = sum(learner.count(batch) for batch in batches)
    losses = loop.accumulate(learner, batches, max(1, count), torch.device("cpu"), precision)
    return sum(losses) / max(1, count), count


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("size", "reduction"), [(1, "token"), (2, "token"), (3, "square"), (2, "sample")])
def test_the_loss_does_not_depend_on_the_split(learner, examples, size, reduction):
    model = learner({"answers": {"reduction": reduction}}).train()
    loss, count = accumulate(model, split(examples, 5))
    whole = gradients(model)
    model.zero_grad()
    parts, parts_count = accumulate(model, split(examples, size))
    assert parts_count == pytest.approx(count)
    assert parts == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-4)
    assert len(whole) == len(list(model.parameters()))  # text-only samples beside images: every weight learns


def test_the_loss_is_the_mean_over_all_supervised_tokens(learner, examples):
    answers = learner().eval()
    loss, count = accumulate(answers, split(examples, 2))
    assert count == sum(int((example.labels != IGNORE).sum()) for example in examples)
    total = 0.0
    with torch.no_grad():
        for example in examples:
            logits = answers.model(example.input_ids[None], normalise(example.tiles))[0]
            total += F.cross_entropy(logits[:-1], example.labels[1:], ignore_index=-100, reduction="sum").item()
    assert loss == pytest.approx(total / count, rel=1e-5)
    assert held_out_loss(answers, split(examples, 1)) == pytest.approx(loss, rel=1e-5)
    assert held_out_loss(answers, split(examples, 5)) == pytest.approx(loss, rel=1e-5)


def test_bfloat16_arithmetic_is_near(learner, examples):
    model = learner().train()
    exact, _ = accumulate(model, split(examples, 2))
    near, _ = accumulate(model, split(examples, 2), "bf16")
    assert near == pytest.approx(exact, rel=0.02)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def test_samples_without_labels_teach_nothing(learner, examples):
    batch = split(examples, 5)[0]
    batch.labels.fill_(-100)
    answers = learner()
    loss, count = accumulate(answers, [batch])
    assert (loss, count) == (0.0, 0)
    assert all((g == 0).all() for g in gradients(answers).values())


def test_the_rate_rises_then_falls_along_a_cosine(stage):
    row = stage(steps=100, lr=1.0, warmup_ratio=0.1, min_lr_ratio=0.2)
    rates = [learning_rate(row, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.2 + 0.8 * 0.5)
    assert rates[99] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(stage(steps=1, lr=0.5, warmup_ratio=0.0), 0) == 0.5


def test_matrices_decay_and_everything_else_does_not(start, stage):
    optimizer = make_optimizer(start.model, stage(weight_decay=0.3, betas=(0.8, 0.7)))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = dict(start.model.named_parameters())
    assert len(decay) == len(names)
    for name, parameter in names.items():
        exempt = name.endswith("bias") or "norm" in name or name.endswith((".ls1", ".ls2", "mlp1.0.weight"))
        assert decay[id(parameter)] == (0.0 if exempt else 0.3), name
    assert optimizer.defaults["betas"] == (0.8, 0.7)


def test_drop_path_is_set_over_the_blocks(start):
    set_drop_path(start.model, 0.4)
    assert [block.drop_path for block in start.model.vision_model.encoder.layers] == pytest.approx([0.0, 0.4])


@pytest.mark.parametrize("parts", [("projector",), ("vision", "llm"), ("vision", "projector", "llm")])
def test_frozen_parts_stay_as_they_are(start, recipe, process, tmp_path, parts):
    model = start.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = recipe({"steps": 2, "train": parts})
    row = settings.stages[0]
    run = Run(recipe=settings, folder=RunFolder(tmp_path), workers=0)
    run_stage(model, row, MixedDataset(row, process, seed=0), run)
    homes = {"vision": "vision_model.", "projector": "mlp1.", "llm": "language_model."}
    for part, home in homes.items():
        changed = [not torch.equal(before[n], p) for n, p in model.named_parameters() if n.startswith(home)]
        assert all(changed) if part in parts else not any(changed), part
    set_trainable(model, ("vision", "projector", "llm"))
    assert all(p.requires_grad for p in model.parameters())


def test_gradients_are_clipped_and_the_norm_before_is_told(start, recipe, process, tmp_path, monkeypatch):
    norms = []
    settings = recipe({"steps": 1, "clip": 1e-3})
    row = settings.stages[0]
    real = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack(gradients).norm().item())
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    told = []
    run = Run(recipe=settings, folder=RunFolder(tmp_path), workers=0, on_progress=told.append)
    run_stage(start.model, row, MixedDataset(row, process, seed=0), run)
    assert norms == pytest.approx([1e-3], rel=1e-3)
    assert told[0].grad_norm > 1e-2


def test_a_loss_that_is_not_finite_names_its_samples(start, recipe, process, tmp_path):
    model = start.model
    with torch.no_grad():
        model.mlp1[1].weight[0, 0] = torch.nan
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = recipe({"steps": 1, "batch_size": 5, "micro_batch": 1})
    run = Run(recipe=settings, folder=RunFolder(tmp_path), workers=0)
    with pytest.raises(NonFiniteLoss, match="the loss is nan on samples rows/") as caught:
        run_stage(model, settings.stages[0], MixedDataset(settings.stages[0], process, seed=0), run)
    assert all(f"rows/r{number}" in str(caught.value) for number in (0, 1, 3, 4))
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters() if n != "mlp1.1.weight")


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(start, recipe, process, tmp_path):
    model = start.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.mlp1[1].weight.register_hook(lambda gradient: gradient * torch.inf)
    settings = recipe({"steps": 2})
    row = settings.stages[0]
    run = Run(recipe=settings, folder=RunFolder(tmp_path), workers=0)
    with pytest.raises(NonFiniteLoss, match=r"gradient's norm is (nan|inf) on samples rows/"):
        run_stage(model, row, MixedDataset(row, process, seed=0), run)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not (tmp_path / "state").exists()


def test_a_gradient_that_no_scale_makes_finite_stops_a_run_in_float16(start, recipe, process, tmp_path, monkeypatch):
    """Its steps are passed by, as those that overflow, but not for ever."""
    monkeypatch.setattr(loop, "FIRST_SCALE", loop.LEAST_SCALE * 2)
    start.model.mlp1[1].bias.register_hook(lambda gradient: gradient * torch.nan)
    settings = recipe({"steps": 4}, precision="fp16")
    run = Run(recipe=settings, folder=RunFolder(tmp_path), workers=0)
    with pytest.raises(NonFiniteLoss, match=r"gradient's norm is nan on samples rows/"):
        run_stage(start.model, settings.stages[0], MixedDataset(settings.stages[0], process, seed=0), run)
    assert [row["step"] for row in read_log(tmp_path / "metrics.jsonl")] == [1, 2]


def test_measuring_leaves_modes_alone(start):
    model = start.model.train()
    with evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training


def test_logs_are_cut_back_to_what_a_state_has_seen(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, [{"stage": "a", "step": step, "loss": step, "score": -math.inf} for step in (1, 2)])
    seen, before = lengths(tmp_path), path.read_bytes()
    append(path, [{"stage": "a", "step": 3, "loss": 3}])
    with path.open("a") as file:
        file.write('{"stage": "a", "st')  # torn by a kill
    cut(tmp_path, seen)
    assert path.read_bytes() == before
    assert "Infinity" not in path.read_text()
    assert seen == {"metrics.jsonl": len(before), "quarantine.jsonl": 0}


def test_repeated_steps_of_a_log_count_once_and_torn_lines_not_at_all(tmp_path):
    path = tmp_path / "speed.jsonl"
    append(path, [{"stage": "a", "step": step, "seconds": step} for step in (1, 2, 3)])
    with path.open("a") as file:
        file.write('{"stage": "a", "st')
    append(path, [{"stage": "a", "step": 3, "seconds": 30}, {"stage": "b", "step": 1, "seconds": 5}])
    rows = [(row["stage"], row["step"], row["seconds"]) for row in read_log(path)]
    assert rows == [("a", 1, 1), ("a", 2, 2), ("a", 3, 30), ("b", 1, 5)]


def test_the_time_left_counts_down():
    one = Flops(forward=1.0, backward=2.0, recomputed=1.0)
    cost = ModelFlops(encoder=one * 900, projector=one * 100, token=one * 100, pair=one, supervised=one * 10)
    meter = Meter(cost, torch.device("cpu"), peak=1e6)
    told = meter.update({"tokens": 100, "supervised": 10, "tiles": 3}, 5050, 0.0)
    assert told["flops_per_s"] * told["seconds"] == pytest.approx(3 * (3000 + 10000 + 5050 + 100))
    assert told["mfu"] == pytest.approx(told["flops_per_s"] / 1e6)
    assert told["tokens_per_s"] == pytest.approx(100 / told["seconds"])
    assert meter.seconds_left(6) == pytest.approx(6 * meter.step_seconds)
    assert meter.seconds_left(0) == 0
