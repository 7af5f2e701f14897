"""What trains, part by part: rates, last blocks, weights beside adapters, and activations that are computed again."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mini_internvl import recipes
from mini_internvl.model.adapter import load_adapted, read_adapter
from mini_internvl.model.checkpoint import load_model
from mini_internvl.model.lora import LoraConfig, add_lora, lora_layers
from mini_internvl.recipes import LoraRecipe, PartRecipe, RecipeError
from mini_internvl.train.batches import packed_batch
from mini_internvl.train.learner import Learner
from mini_internvl.train.loop import accumulate
from mini_internvl.train.optim import MuonAdamW, make_optimizer
from mini_internvl.train.parts import set_checkpointing, set_drop_path, set_trainable, trainable
from mini_internvl.train.run import run_recipe
from mini_internvl.train.state import newest


def gradients(learner, batches):
    learner.zero_grad()
    loss = accumulate(learner, batches, 7.0, torch.device("cpu"), "fp32", seeds=range(len(batches)))
    return loss, {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [("vision",), ("llm",), ("vision", "llm")])
def test_activations_computed_again_give_the_same_gradients_bit_for_bit(start, stage, examples, parts):
    model = add_lora(start.model, LoraConfig(rank=2, dropout=0.3))
    set_drop_path(model, 0.5)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.1)
    learner = Learner(model, stage()).train()
    calls = []
    blocks = {"vision": model.vision_model.encoder.layers[1].attn, "llm": model.language_model.layers[1].self_attn}
    for name, block in blocks.items():
        block.register_forward_hook(lambda *_, name=name: calls.append(name))
    batches = [packed_batch(examples[:3]), packed_batch(examples[3:])]
    wanted = gradients(learner, batches)
    assert len(calls) == 4
    set_checkpointing(model, parts)
    loss, found = gradients(learner, batches)
    assert len(calls) == 8 + 2 * len(parts)
    assert loss == wanted[0]
    assert found.keys() == wanted[1].keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted[1].items())
    set_checkpointing(model, ())
    assert not any(block.checkpointing for block in (*model.vision_model.encoder.layers, *model.language_model.layers))


def test_a_run_with_checkpointing_ends_with_the_same_weights(recipe, tmp_path):
    changes = {"steps": 2, "drop_path": 0.3}
    plain = load_model(run_recipe(recipe(changes), tmp_path / "plain", workers=0).parent / "last").state_dict()
    settings = recipe({**changes, "checkpointing": ("vision", "llm")})
    found = load_model(run_recipe(settings, tmp_path / "again", workers=0).parent / "last").state_dict()
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    assert not list(recipes.differences(recipe(changes), settings))  # a run may go on with it


def test_parts_have_rates_of_their_own(start, stage):
    one = stage(lr=1e-3, train={"vision": {"lr": 1e-4}, "projector": None, "llm": {"lr": 3e-3}}, weight_decay=0.2)
    for kind in ("adamw", "muon"):
        optimizer = make_optimizer(start.model, stage(optimizer=kind, lr=1e-3, train=one.train, weight_decay=0.2))
        assert isinstance(optimizer, MuonAdamW) == (kind == "muon")
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        wanted = {"vision_model": 0.1, "mlp1": 1.0, "language_model": 3.0}
        for name, parameter in start.model.named_parameters():
            group = groups[id(parameter)]
            assert group["lr_scale"] == pytest.approx(wanted[name.split(".")[0]])
            assert group["lr"] == pytest.approx(1e-3 * group["lr_scale"])
            assert group["weight_decay"] == (0.2 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_loop_scales_the_schedule_by_part(recipe, checkpoint, tmp_path, kind):
    """With AdamW the first step moves each weight by its rate."""
    train = {"vision": {"lr": 1e-5}, "llm": {"lr": 1e-3}}
    settings = recipe({"train": train, "lr": 1e-4, "steps": 1, "optimizer": kind, "weight_decay": 0.0}, held_out=())
    run_recipe(settings, tmp_path, workers=0)
    before = load_model(checkpoint).state_dict()
    kept = load_file(newest(tmp_path / "state").folder / "state.safetensors")
    trained = {name.removeprefix("model."): value for name, value in kept.items() if name.startswith("model.")}
    assert {name.split(".")[0] for name in trained} == {"vision_model", "language_model"}
    matrices = ("vision_model.encoder.layers.0.mlp.fc1.weight", "language_model.layers.0.mlp.up_proj.weight")
    slow, fast = ((trained[name] - before[name]).pow(2).mean().sqrt() for name in matrices)
    assert fast / slow == pytest.approx(100, rel=0.3)


def test_only_the_last_blocks_train(start, stage):
    model = start.model
    set_trainable(model, stage(train={"vision": {"layers": 1}, "llm": {"layers": 1}}).parts())
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    begins = (
        "vision_model.encoder.layers.1.",
        "language_model.layers.1.",
        "language_model.norm.",
        "language_model.lm_head.",
    )
    assert found == {name for name, _ in model.named_parameters() if name.startswith(begins)}
    with pytest.raises(RecipeError, match=r"train.llm.layers is 3; it has 2 blocks"):
        trainable(model, {"llm": PartRecipe(layers=3)})
    add_lora(model, LoraConfig(rank=2))
    found = trainable(model, {"vision": PartRecipe(layers=1), "llm": PartRecipe(lora=True)})
    assert all(".lora_" in name for name in found)
    assert {name.split(".layers.")[1][0] for name in found if name.startswith("vision")} == {"1"}
    assert {name.split(".layers.")[1][0] for name in found if name.startswith("language")} == {"0", "1"}


@pytest.mark.parametrize(("full", "adapted"), [("vision", "llm"), ("llm", "vision")])
def test_a_part_trains_in_full_beside_adapters_of_the_other(recipe, checkpoint, tmp_path, full, adapted):
    train = {full: {"lora": False}, adapted: {"lora": True}}
    settings = recipe({"steps": 2, "train": train}, lora=LoraRecipe(rank=2, parts=(adapted,)), precision="bf16")
    run_recipe(settings, tmp_path / "run", workers=0)
    last = tmp_path / "run/last"
    assert read_adapter(last).full == (("vision_tower",) if full == "vision" else ("language_model", "lm_head"))
    model, base = load_adapted(last), load_model(checkpoint)
    homes = {"vision": "vision_model.", "llm": "language_model."}
    assert lora_layers(model)
    assert all(name.startswith(homes[adapted]) for name in lora_layers(model))
    state = model.state_dict()
    for name, value in base.state_dict().items():
        assert torch.equal(state[name], value) != name.startswith(homes[full]), name
    onward = recipe({"steps": 1, "train": (adapted,)}, model=str(last))
    run_recipe(onward, tmp_path / "onward", workers=0)
    again = load_adapted(tmp_path / "onward/last").state_dict()
    assert all(torch.equal(again[name], state[name]) for name in base.state_dict())


def test_settings_of_parts_are_checked(start, stage):
    for train, message in (
        ({"vision": {"lr": 0}}, "train.vision: lr is 0.0; it must be above 0"),
        ({"llm": {"layers": 0}}, "train.llm: layers is 0; it must be at least 1"),
        ({"llm": {"layer": 1}}, 'train.llm: unknown field "layer"; did you mean "layers"'),
        ({"projector": {"layers": 1}}, "train.projector has neither blocks nor adapters"),
        ({"eyes": {}}, r"train holds \['eyes'\]; known parts: vision, projector, llm"),
        ({}, "train holds nothing"),
    ):
        with pytest.raises(RecipeError, match=message):
            stage(train=train)
    with pytest.raises(RecipeError, match=r"checkpointing holds \['projector'\]; parts with blocks: vision, llm"):
        stage(checkpointing=("projector",))
    one = stage(train={"llm": {"lr": 1e-5}})
    assert recipes.from_dict(recipes.StageRecipe, recipes.to_dict(one)) == one
    with pytest.raises(RecipeError, match=r"train.llm.lora is true, where this model has no adapters"):
        trainable(start.model, {"llm": PartRecipe(lora=True)})
    add_lora(start.model, LoraConfig(rank=2, parts=("llm",)))
    with pytest.raises(RecipeError, match=r"train.llm.lora is false, but it has adapters"):
        trainable(start.model, {"llm": PartRecipe(lora=False)})
