"""Adapters trained by recipes: the base stays, runs resume bit for bit, adapters are trained on, merged and reread."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mini_internvl import recipes
from mini_internvl.commands.doctor import diagnose
from mini_internvl.commands.merge import merge
from mini_internvl.model.adapter import find_base, is_adapter, load_adapted, read_adapter, tensors_hash
from mini_internvl.model.checkpoint import load_model
from mini_internvl.model.lora import LoraConfig, add_lora, lora_layers, lora_state
from mini_internvl.recipes import LoraRecipe, LoraTargets, RecipeError
from mini_internvl.records import Interrupted
from mini_internvl.train.batches import packed_batch
from mini_internvl.train.initial import open_initial
from mini_internvl.train.learner import Learner
from mini_internvl.train.log import read_log
from mini_internvl.train.loop import accumulate
from mini_internvl.train.optim import make_optimizer
from mini_internvl.train.parts import learning_rate, set_trainable
from mini_internvl.train.run import run_recipe
from mini_internvl.train.state import newest

ADAPTERS = ("llm", "vision")
"""Parts of a stage that leave the projector as it is."""


def log(folder):
    rows = read_log(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "tokens_per_s"} for row in rows]


def stop_after(steps):
    asked = count(1)
    return lambda: next(asked) >= steps


@pytest.fixture
def lora_recipe(recipe):
    """``lora_recipe({stage fields}, lora fields, ...)``."""

    def make(changes=None, lora=None, **settings):
        stage = {"train": ADAPTERS, "steps": 4, "lr": 1e-2} | (changes or {})
        return recipe(stage, lora=LoraRecipe(**({"rank": 2} | (lora or {}))), **settings)

    return make


def test_only_the_adapters_train(checkpoint, lora_recipe, tmp_path):
    told = []
    settings = lora_recipe({"steps": 12, "lr": 3e-3}, {"rank": 8})
    best = run_recipe(settings, tmp_path / "run", workers=0, on_progress=told.append)
    assert told[-1].loss < told[0].loss - 0.2
    for folder in (best, tmp_path / "run/last"):
        assert is_adapter(folder)
        assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert Path(find_base(best)) == checkpoint
    assert not diagnose(best).findings
    info = read_adapter(best)
    assert (info.rank, info.dropout, info.projector) == (8, 0.05, False)
    assert info.base_hash == tensors_hash(checkpoint)
    model, base = load_adapted(best), load_model(checkpoint).state_dict()
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base.items())
    assert all(layer.lora_B.any() for layer in lora_layers(model).values())
    kept = load_file(newest(tmp_path / "run/state").folder / "state.safetensors")
    assert not [name for name in kept if name.endswith("_proj.weight")]


def test_stopped_and_continued_equals_uninterrupted(lora_recipe, stage, tmp_path):
    """With dropout and drop path; the second stage trains another part."""
    stages = (
        stage(name="one", train=("llm",), steps=3, drop_path=0.5),
        stage(name="two", train=("vision", "projector"), steps=3),
    )
    settings = lora_recipe(lora={"dropout": 0.3}, stages=stages)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_recipe(settings, whole, workers=0)
    for stops in (2, 2):
        with pytest.raises(Interrupted):
            run_recipe(settings, parts, workers=0, should_stop=stop_after(stops))
    run_recipe(settings, parts, workers=0)
    state = newest(whole / "state").folder.relative_to(whole)
    for name in (state / "state.safetensors", "last/adapter_model.safetensors", "best/adapter_model.safetensors"):
        first, second = load_file(whole / name), load_file(parts / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert log(whole) == log(parts)
    assert run_recipe(settings, parts, workers=0) == parts / "best"


def test_a_stage_that_names_the_projector_trains_and_saves_it(checkpoint, lora_recipe, tmp_path):
    run_recipe(lora_recipe({"train": ("llm", "projector")}, {"parts": ("llm",)}), tmp_path / "run", workers=0)
    model, base = load_adapted(tmp_path / "run/last"), load_model(checkpoint)
    assert not torch.equal(model.mlp1[1].weight, base.mlp1[1].weight)
    assert not any(name.startswith("vision") for name in lora_layers(model))
    trained = load_file(newest(tmp_path / "run/state").folder / "state.safetensors")["model.mlp1.1.weight"]
    assert torch.equal(model.mlp1[1].weight, trained)


def test_training_goes_on_from_an_adapter(lora_recipe, recipe, tmp_path):
    first = run_recipe(lora_recipe({"train": ("llm", "vision", "projector")}), tmp_path / "first", workers=0)
    before = load_adapted(first).eval()
    settings = recipe({"train": ("llm",), "steps": 3, "lr": 1e-2}, model=str(first))
    start = open_initial(settings)
    assert start.full == ("multi_modal_projector",)
    assert all(torch.equal(a, b) for a, b in zip(start.model.parameters(), before.parameters(), strict=True))
    second = load_adapted(run_recipe(settings, tmp_path / "second", workers=0).parent / "last")
    old, new = lora_state(before), lora_state(second)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(name.startswith("language_model") for name in changed)
    assert torch.equal(second.mlp1[1].weight, before.mlp1[1].weight)
    same = recipe({"train": ADAPTERS}, model=str(first), lora=LoraRecipe(rank=2, dropout=0.2))
    assert {layer.dropout for layer in lora_layers(open_initial(same).model).values()} == {0.2}
    for other in ({"rank": 3}, {"rank": 2, "alpha": 1}, {"rank": 2, "parts": ("llm",)}):
        with pytest.raises(RecipeError, match=r"lora asks for other adapters than .* of rank 2\)"):
            open_initial(recipe(model=str(first), lora=LoraRecipe(**other)))


def test_training_goes_on_from_a_merged_model(lora_recipe, recipe, tmp_path):
    adapter = run_recipe(lora_recipe(), tmp_path / "first", workers=0)
    merge(adapter, tmp_path / "merged")
    again = run_recipe(lora_recipe({"steps": 2}, model=str(tmp_path / "merged")), tmp_path / "second", workers=0)
    assert read_adapter(again).base_hash == tensors_hash(tmp_path / "merged")
    full = run_recipe(recipe({"steps": 1}, model=str(tmp_path / "merged")), tmp_path / "third", workers=0)
    assert not is_adapter(full)
    assert not lora_layers(load_model(full))


def test_what_trains_and_what_is_frozen(checkpoint):
    model = add_lora(load_model(checkpoint), LoraConfig(rank=2, parts=("llm",)))
    set_trainable(model, ("vision", "llm"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in lora_state(model)}
    set_trainable(model, ("projector",))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in model.state_dict() if name.startswith("mlp1.")}
    with pytest.raises(RecipeError, match=r"train names vision, where this model has no adapters"):
        set_trainable(model, ("vision",))


def test_a_stage_that_would_train_nothing_is_refused_at_once(lora_recipe, stage, tmp_path):
    stages = (stage(train=("llm",)), stage(name="two", train=("vision",)))
    with pytest.raises(RecipeError, match="nothing would train"):
        run_recipe(lora_recipe(lora={"parts": ("llm",)}, stages=stages), tmp_path / "run", workers=0)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_bfloat16_arithmetic(lora_recipe, tmp_path):
    best = run_recipe(lora_recipe({"steps": 2}, precision="bf16"), tmp_path / "run", workers=0)
    assert {value.dtype for value in load_file(best / "adapter_model.safetensors").values()} == {torch.float32}


def test_lora_in_yaml(rows, tmp_path):
    path = tmp_path / "r.yaml"
    stage = f"  - {{name: s, steps: 1, train: [llm], data: [{{kind: jsonl, path: {rows}}}]}}\n"
    head = f"name: r\nmodel: m\nstages:\n{stage}"
    path.write_text(head + "lora: {rank: 4, parts: [llm], targets: {llm: [q_proj, v_proj]}}\n")
    settings = recipes.load(path, ["lora.dropout=0.1", "lora.alpha=2"])
    wanted = LoraRecipe(rank=4, alpha=2.0, dropout=0.1, parts=("llm",), targets=LoraTargets(llm=("q_proj", "v_proj")))
    assert settings.lora == wanted
    assert wanted.scale == 0.5
    assert recipes.from_dict(recipes.Recipe, recipes.to_dict(settings)) == settings
    path.write_text(head)
    assert "lora" not in recipes.to_dict(recipes.load(path))
    for lora, match in (
        ("{rank: 0}", r"lora.rank is 0"),
        ("{alpha: -1}", r"lora.alpha is -1.0"),
        ("{dropout: 1}", r"lora.dropout is 1.0"),
        ("{parts: [projector]}", r"lora.parts holds \['projector'\]; known parts: llm, vision"),
        ("{parts: []}", r"lora.parts holds nothing"),
        ("{targets: {llm: [qkv]}}", r"lora.targets.llm holds \['qkv'\]; known: q_proj"),
        ("{rnk: 4}", r'unknown field "lora.rnk"; did you mean "rank"'),
    ):
        path.write_text(head + f"lora: {lora}\n")
        with pytest.raises(RecipeError, match=match):
            recipes.load(path)
    path.write_text(head.replace("model: m", "build: m") + "lora: {}\n")
    with pytest.raises(RecipeError, match="lora adapts a checkpoint"):
        recipes.load(path)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_twenty_steps_end_where_peft_ends(checkpoint, stage, examples, dropout):
    """The same model, A, data and AdamW; the layers are peft's own."""
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    settings = stage(train=ADAPTERS, steps=20, lr=2e-3, weight_decay=0.1)
    ours = add_lora(load_model(checkpoint), LoraConfig(rank=3, alpha=5, dropout=dropout), seed=4)
    layers = lora_layers(ours)
    asked = PeftConfig(r=3, lora_alpha=5, lora_dropout=dropout, target_modules=list(layers))
    theirs = inject_adapter_in_model(asked, load_model(checkpoint))
    for name, layer in layers.items():
        theirs.get_submodule(f"{name}.lora_A.default").weight.data.copy_(layer.lora_A)
    first = {name: layer.lora_A.detach().clone() for name, layer in layers.items()}
    for model in (ours, theirs):
        learner = Learner(model, settings).train()
        optimizer = make_optimizer(learner, settings)
        batches = [packed_batch(examples[:3]), packed_batch(examples[3:])]
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step)
            accumulate(learner, batches, 30.0, model.device, "fp32", seeds=(2 * step, 2 * step + 1))
            torch.nn.utils.clip_grad_norm_(learner.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()
    for name, layer in layers.items():
        for which in ("lora_A", "lora_B"):
            found, expected = getattr(layer, which), theirs.get_submodule(f"{name}.{which}.default").weight
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert (layer.lora_A - first[name]).abs().max() > 1e-3
        assert layer.lora_B.abs().max() > 1e-3
