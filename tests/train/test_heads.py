"""Heads on hidden states: their loss against numpy, what it reaches, packed = separate, targets that do not fit."""

from __future__ import annotations

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mini_internvl.data import DataError
from mini_internvl.data.rows import read_samples
from mini_internvl.engine import load
from mini_internvl.model.heads import load_heads
from mini_internvl.recipes import LoraRecipe, RecipeError, SourceRecipe
from mini_internvl.records import Interrupted, Sample
from mini_internvl.train.batches import collate, packed_batch
from mini_internvl.train.initial import sample_processor
from mini_internvl.train.learner import Features, Learner
from mini_internvl.train.losses.heads import Loss, Settings, prompt_ends
from mini_internvl.train.machines import find_machine
from mini_internvl.train.parts import set_trainable
from mini_internvl.train.plan import Planner
from mini_internvl.train.run import run_recipe

SPEED = {"kind": "regression", "mean": 10, "std": 5}
ROUTE = {"kind": "regression", "size": 2, "mean": [0, 1], "std": [2, 4], "loss": "square", "weight": 0.5}
TURN = {"kind": "classification", "classes": ["left", "right", "none"], "weight": 2}
HEADS = {"speed": SPEED, "route": ROUTE, "turn": TURN}


def sample(number, targets, *turns, independent=False, image=True):
    picture = {"type": "image", "image": Image.effect_noise((56, 56 + 30 * number), 90).convert("RGB")}
    texts = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    if image:
        texts[0] = {"role": "user", "content": [picture, {"type": "text", "text": turns[0]}]}
    return Sample(id=str(number), messages=texts, targets=targets, independent=independent, source="s")


SAMPLES = [
    sample(0, {"speed": 12.5, "turn": "right"}, "How fast?", "A bit."),
    sample(1, {"speed": -3, "route": (1.0, 9.0)}, "What?", "One.", "Why?", "Two words."),
    sample(2, {"turn": "left", "route": (-2.0, 0.5)}, "What?", "It.", "Where?", "There.", independent=True),
    sample(3, {}, "Who?", "Me.", image=False),
]


@pytest.fixture
def examples(start, stage):
    torch.manual_seed(0)
    process = sample_processor(start, stage(loss={"heads": {"heads": HEADS}}, max_length=500))
    return [process(one) for one in SAMPLES]


@pytest.fixture
def heads(learner):
    """A learner of the heads above, their weights large enough to matter."""

    def make(**settings):
        beside = settings.pop("beside", {})
        made = learner({**beside, "heads": {"heads": HEADS, **settings}}).train()
        generator = torch.Generator().manual_seed(1)
        for parameter in made.loss["heads"].parameters():
            parameter.data.normal_(0, 0.5, generator=generator)
        return made

    return make


def outputs(learner, state):
    """By numpy: the heads' values on one hidden state."""
    layers = learner.loss["heads"].heads.linear
    return {
        name: layers[f"head_{name}"].weight.detach().numpy() @ state + layers[f"head_{name}"].bias.detach().numpy()
        for name in HEADS
    }


def reference(learner, state, targets):
    found, total = outputs(learner, state), 0.0
    if "speed" in targets:
        gap = abs(found["speed"][0] - (targets["speed"] - 10) / 5)
        total += gap**2 / 2 if gap < 1 else gap - 0.5
    if "route" in targets:
        total += 0.5 * np.mean((found["route"] - (np.array(targets["route"]) - [0, 1]) / [2, 4]) ** 2)
    if "turn" in targets:
        logits = found["turn"]
        total += 2 * (np.log(np.exp(logits).sum()) - logits[TURN["classes"].index(targets["turn"])])
    return total


def prompts(model, processor, one):
    """The conversations of a sample as they are asked: each question alone, or all up to the last answer."""
    turns = one.messages
    if not one.independent:
        return [processor.prepare(turns[:-1], max_tiles=2)]
    image = turns[0]["content"][0]
    texts = [turns[0]["content"][1]["text"], *(turn["content"] for turn in turns[2::2])]
    return [
        processor.prepare([{"role": "user", "content": [image, {"type": "text", "text": text}]}], max_tiles=2)
        for text in texts
    ]


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("at", ["last", "visual"])
def test_the_loss_is_that_of_each_prompt_asked_alone(heads, examples, process, layers, at):
    learner = heads(layers=layers, at=at)
    model, total, places = learner.model, 0.0, 0
    for one in SAMPLES:
        asked = prompts(model, process.processor, one)
        for prompt in asked if at == "last" else asked[:1]:
            ids = torch.tensor([prompt.input_ids])
            with torch.no_grad():
                visual = model.encode_images(prompt.pixel_values) if len(prompt.pixel_values) else None
                [hidden] = model.states(ids, [layers or 2], visual_tokens=visual)
            state = hidden[0, -1] if at == "last" else hidden[0, ids[0] == model.image_token_id].mean(0)
            if one.targets:
                total, places = total + reference(learner, state.numpy(), one.targets), places + 1
    batch = collate(examples, 0)
    assert learner.count(batch) == places == (4 if at == "last" else 3)
    assert learner(batch)["loss"].item() == pytest.approx(total, rel=1e-4)


def test_with_n_layers_nothing_behind_them_is_trained_or_run(heads, examples):
    learner, ran = heads(layers=1), []
    model = learner.model
    for number, block in enumerate(model.language_model.layers):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    learner(collate(examples, 0))["loss"].backward()
    assert ran == [0]
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    behind = ("language_model.layers.1.", "language_model.lm_head.")
    assert reached == {name for name, _ in model.named_parameters() if not name.startswith(behind)}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == reached
    for part in ("vision_model.embeddings", "mlp1.", "language_model.layers.0.", "language_model.embed_tokens"):
        assert any(parameter.grad.any() for name, parameter in model.named_parameters() if name.startswith(part))
    assert all(parameter.grad.any() for parameter in learner.loss.parameters())


def test_beside_the_answers_the_decoder_runs_once(heads, learner, examples):
    both, ran = heads(layers=1, weight=0.25, beside={"answers": {}}), []
    assert all(parameter.requires_grad for parameter in both.model.parameters())
    batch = collate(examples, 0)
    alone = heads(layers=1)(batch)["loss"].item()
    answers = learner()(batch)["loss"].item()
    for block in both.model.language_model.layers:
        block.register_forward_hook(lambda *_: ran.append(1))
    assert both(batch)["loss"].item() == pytest.approx(answers + 0.25 * alone, rel=1e-5)
    assert len(ran) == 2
    assert both.count(batch) == learner().count(batch)


@pytest.mark.parametrize("at", ["last", "visual"])
def test_packed_rows_learn_as_separate_ones(heads, examples, at):
    learner = heads(at=at, layers=1)

    def learn(batches):
        learner.zero_grad()
        losses = [learner(batch)["loss"] for batch in batches]
        torch.stack(losses).sum().backward()
        trained = [parameter.grad.clone() for parameter in learner.parameters() if parameter.requires_grad]
        return sum(loss.item() for loss in losses), trained, sum(map(learner.count, batches))

    together = learn([packed_batch(examples)])
    for batches in ([collate([one], 0) for one in examples], [collate(examples[::-1], 0)]):
        loss, gradients, count = learn(batches)
        assert (loss, count) == (pytest.approx(together[0], rel=1e-5), together[2])
        for mine, theirs in zip(gradients, together[1], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    several = dataclasses.replace(collate([examples[2], examples[0]], 0))
    _, _, owners = prompt_ends(several, torch.arange(2)[:, None].expand_as(several.labels))
    assert owners.tolist() == [0, 0, 1]


def test_mean_and_deviation_are_measured_on_the_first_samples(start):
    heads = {"speed": {"kind": "regression"}, "route": {"kind": "regression", "size": 2}, "turn": TURN}
    loss = Loss(Settings(heads=heads, measured=4), start.model.config)
    more = [{"speed": 2.5, "route": (5.0, 9.0)}, {"speed": 99}]
    loss.begin([*SAMPLES[:3], *(sample(number, targets, "?", "!") for number, targets in enumerate(more))])
    speeds, routes = np.array([12.5, -3, 2.5]), np.array([[1, 9], [-2, 0.5], [5, 9]])
    assert loss.heads.get_buffer("mean_speed").tolist() == [pytest.approx(speeds.mean())]
    assert loss.heads.get_buffer("std_speed").tolist() == [pytest.approx(speeds.std())]
    assert loss.heads.get_buffer("std_route").tolist() == pytest.approx(routes.std(0).tolist())
    loss.begin([sample(0, {"speed": 0.0, "route": (7.0, 1.0), "turn": "left"}, "?", "!")])
    assert loss.heads.get_buffer("std_route").tolist() == [1, 1]  # a constant is not scaled
    given = Loss(Settings(heads=HEADS), start.model.config)
    given.begin(SAMPLES)
    assert given.heads.get_buffer("std_route").tolist() == [2, 4]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"speed": "fast"}, "sample s/7: targets.speed is 'fast'; it must be a number"),
        ({"speed": (1.0, 2.0)}, r"targets.speed is \[1.0, 2.0\]; it must be a number"),
        ({"route": 1.0}, "targets.route is 1.0; it must be a list of 2 numbers"),
        ({"turn": "up"}, "targets.turn is 'up'; the classes are left, right, none"),
        ({"turn": 1.0}, "targets.turn is 1.0; the classes are left, right, none"),
    ],
)
def test_a_target_of_another_kind_names_row_and_field(start, stage, targets, message):
    process = sample_processor(start, stage(loss={"heads": {"heads": HEADS}}))
    odd = dataclasses.replace(sample(7, targets, "?", "!"), place="rows.jsonl:8")
    with pytest.raises(DataError, match=f"^rows.jsonl:8, .*{message}"):
        process(odd)


def test_a_head_that_no_row_has_a_target_for_is_told_before_training(start, stage, recipe, tmp_path):
    loss = Loss(Settings(heads=HEADS), start.model.config)
    with pytest.raises(
        DataError, match="first 1 samples has a target for the head route: they have Speed, speed, turn"
    ):
        loss.begin([sample(0, {"speed": 1.0, "Speed": 1.0, "turn": "left"}, "?", "!")])
    with pytest.raises(DataError, match="for the head speed: they have none at all; write"):
        run_recipe(recipe({"loss": {"heads": {"heads": HEADS}}}), tmp_path, workers=0)


def test_heads_on_visual_tokens_need_an_image(start, stage):
    process = sample_processor(start, stage(loss={"heads": {"heads": HEADS, "at": "visual"}}))
    with pytest.raises(DataError, match=r"has targets but no image; heads that read visual tokens \(at: visual\)"):
        process(sample(0, {"speed": 1}, "?", "!", image=False))
    assert process(sample(0, {}, "?", "!", image=False)).extras["heads.speed"].isnan().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": {}}, "heads.heads is empty"),
        ({"heads": HEADS, "at": "first"}, 'heads.at is "first"; known: last, visual'),
        ({"heads": HEADS, "layers": 0}, "heads.layers is 0; it must be at least 1"),
        ({"heads": {"a.b": SPEED}}, "heads.heads.a.b: a name has letters"),
        ({"heads": {"speed": {"kind": "number"}}}, 'heads.heads.speed: kind is "number"; known: regression, cl'),
        ({"heads": {"speed": {**SPEED, "siz": 2}}}, 'heads.heads.speed: unknown field "siz"; did you mean "size"'),
        (
            {"heads": {"speed": {**SPEED, "size": 2, "std": [1, 2, 3]}}},
            "std holds 3 numbers; the head has size 2",
        ),
        ({"heads": {"speed": {**SPEED, "std": 0}}}, "heads.heads.speed: std is 0.0; it must be above 0"),
        ({"heads": {"speed": {"kind": "regression", "mean": 1}}}, "speed: give both mean and std"),
        ({"heads": {"speed": {**SPEED, "loss": "l1"}}}, 'speed: loss is "l1"; known: smooth_l1, square'),
        ({"heads": {"turn": {**TURN, "classes": ["left"]}}}, "turn: classes must name at least two"),
        ({"heads": {"turn": {**TURN, "size": 2}}}, "turn: size, mean and std are of a regression"),
    ],
)
def test_a_wrong_setting_is_named(stage, settings, message):
    with pytest.raises(RecipeError, match=message):
        stage(loss={"heads": settings})


def test_more_layers_than_the_decoder_has_are_refused(learner):
    with pytest.raises(RecipeError, match=r"heads.layers is 3; the decoder has 2 blocks"):
        learner({"heads": {"heads": HEADS, "layers": 3}})


LEARNT = {"heads": {"heads": {"speed": {"kind": "regression"}, "turn": TURN}, "layers": 1}}


def test_heads_learn_and_resume_to_the_bit(recipe, driven, tmp_path):
    settings = recipe({"loss": LEARNT, "data": (driven,), "steps": 30, "lr": 3e-3}, held_out=(driven,))
    told = []
    run_recipe(settings, tmp_path / "whole", workers=0, on_progress=told.append)
    assert told[-1].held_out["held_out_loss"] < 0.5 * told[2].held_out["held_out_loss"]
    short = recipe({"loss": LEARNT, "data": (driven,), "steps": 3}, held_out=(driven,))
    run_recipe(short, tmp_path / "uncut", workers=0)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_recipe(short, tmp_path / "parts", workers=0, should_stop=lambda: True)
    run_recipe(short, tmp_path / "parts", workers=0)
    first, second = (load_file(next((tmp_path / name / "state").rglob("*.safetensors"))) for name in ("uncut", "parts"))
    assert first.keys() == second.keys()
    assert any(name.endswith("mean_speed") for name in first)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_heads_alone_learn_on_a_model_that_stays_as_it_is(recipe, driven, checkpoint, tmp_path):
    visual = {"heads": LEARNT["heads"] | {"at": "visual"}}
    alone = {"loss": visual, "train": (), "data": (driven,), "steps": 12, "lr": 3e-2}
    settings, told = recipe(alone, held_out=(driven,)), []
    best = run_recipe(settings, tmp_path / "whole", workers=0, on_progress=told.append)
    (plan,) = Planner(find_machine("T4")).plan(settings)
    assert 0 < plan.memory["optimiser"] < 0.05 * plan.memory["weights"]
    assert plan.flops.backward == 0  # of the model
    measured = [one.held_out["held_out_loss"] for one in told if one.held_out]
    assert measured[-1] < 0.6 * measured[0]
    base = load_file(checkpoint / "model.safetensors")
    for folder in (best, tmp_path / "whole/last"):
        saved = load_file(folder / "model.safetensors")
        assert saved.keys() == base.keys()
        assert all(saved[name].dtype == base[name].dtype and torch.equal(saved[name], base[name]) for name in base)
        assert load(folder).predict(read_samples(driven.path)[0].messages[:-1]).keys() == {"speed", "turn"}
    stops = iter(range(99))
    with pytest.raises(Interrupted):
        run_recipe(settings, tmp_path / "parts", workers=0, should_stop=lambda: next(stops) == 4)
    run_recipe(settings, tmp_path / "parts", workers=0)
    folders = tmp_path / "whole", tmp_path / "parts"
    states = [load_file(max((folder / "state").iterdir()) / "state.safetensors") for folder in folders]
    assert all(re.match(r"(optimizer\.\w+\.)?loss\.", name) for name in states[0])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    files = [(folder / "last/heads.safetensors").read_bytes() for folder in folders]
    assert files[0] == files[1]


def test_a_frozen_model_of_heads_drops_nothing(start, stage):
    alone = Learner(start.model, stage(loss=LEARNT, train=()))
    set_trainable(start.model, ())
    assert alone.train().training
    assert not any(module.training for module in start.model.modules())
    set_trainable(start.model, ("projector",))
    assert alone.train().model.training


@pytest.mark.parametrize("loss", ["answers", {"heads": LEARNT["heads"], "answers": {}}])
def test_only_heads_can_train_alone(stage, recipe, loss):
    with pytest.raises(RecipeError, match=r"stage one: train holds nothing, and loss answers has nothing of its own"):
        stage(train=(), loss=loss)
    with pytest.raises(RecipeError, match="lora trains in no stage"):
        recipe({"loss": LEARNT, "train": ()}, lora=LoraRecipe(rank=2))


@pytest.mark.parametrize("lora", [False, True])
def test_predict_is_the_training_forward(recipe, driven, tmp_path, start, lora):
    """From best and last, a checkpoint or adapters; and a stage or run that trains on goes on with the heads."""
    extra = {"lora": LoraRecipe(rank=2, dropout=0.0), "seed": 0} if lora else {}
    train = {"train": ("llm",)} if lora else {}
    learnt = {"answers": {}, **LEARNT}
    settings = recipe({"loss": learnt, "data": (driven,), "steps": 4, "lr": 1e-2, **train}, held_out=(driven,), **extra)
    best = run_recipe(settings, tmp_path / "run", workers=0)
    assert best.name == "best"
    state = load_file(next((tmp_path / "run/state").rglob("*.safetensors")))
    if not lora:
        shutil.rmtree(tmp_path / "run/last")  # it is written again, from the state
        run_recipe(settings, tmp_path / "run", workers=0)
    for folder in (best, tmp_path / "run/last"):
        heads = load_heads(folder, hidden_size=48, layers=2)
        assert heads.get_buffer("mean_speed").tolist() == [pytest.approx(3.4, abs=1)]
        engine = load(folder, dtype="float32")
        learner = Learner(engine.model, settings.stages[0]).eval()
        assert learner.loss["heads"].heads.take(heads)
        process = sample_processor(dataclasses.replace(start, model=engine.model), settings.stages[0])
        samples = read_samples(driven.path)
        batch = collate([process(one) for one in samples], 0)
        found = engine.predict_batch([one.messages[:-1] for one in samples])
        with torch.no_grad():
            states = Features(engine.model, batch, [1]).hidden(1)
            rows, places, _ = prompt_ends(batch, torch.arange(len(samples))[:, None].expand_as(batch.labels))
            expected = heads.values(states[rows, places])
        assert [one["turn"] for one in found] == [one["turn"] for one in expected]
        assert [one["speed"] for one in found] == pytest.approx([one["speed"] for one in expected], abs=1e-4)
    weights = load_file(tmp_path / "run/last/heads.safetensors")
    assert torch.equal(weights["speed.weight"], state["loss.heads.heads.linear.head_speed.weight"])
    on = {"loss": learnt, "data": (driven,), "steps": 1, "lr": 1e-9, **train}
    more = recipe(on, model=str(tmp_path / "run/last"))
    run_recipe(more, tmp_path / "more", workers=0)
    again = load_file(tmp_path / "more/last/heads.safetensors")
    torch.testing.assert_close(again["speed.weight"], weights["speed.weight"], atol=1e-6, rtol=0)


def test_held_out_rows_without_targets_are_refused_before_training(recipe, rows, driven, tmp_path):
    """Their loss would be 0, and so the best there is."""
    bare = SourceRecipe(kind="rows", path=str(rows))
    with pytest.raises(DataError, match=r"held_out: .*rows\.jsonl: nothing in it can be measured by the loss heads; g"):
        run_recipe(recipe({"loss": LEARNT, "data": (driven,)}, held_out=(bare,)), tmp_path / "run", workers=0)
    assert not (tmp_path / "run/metrics.jsonl").exists()
