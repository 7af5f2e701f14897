"""Distillation: the losses against NumPy in float64, a teacher that never trains, students and their pictures, runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from mini_internvl import recipes
from mini_internvl.data.pictures import each_picture, picture_folder
from mini_internvl.data.sources import open_source
from mini_internvl.model.checkpoint import load_vision
from mini_internvl.model.config import ConfigError
from mini_internvl.model.encoder import EncoderAlone, encoder_config, save_encoder
from mini_internvl.model.sizes import ENCODERS, VIT_300M, fresh_encoder
from mini_internvl.recipes import RecipeError, SourceRecipe, StudentRecipe
from mini_internvl.records import Interrupted, Sample
from mini_internvl.train.batches import collate, to_device
from mini_internvl.train.build import join_parts
from mini_internvl.train.distil import distil
from mini_internvl.train.initial import open_initial, sample_processor
from mini_internvl.train.learner import ImageFeatures, Learner
from mini_internvl.train.log import read_log
from mini_internvl.train.loop import accumulate
from mini_internvl.train.losses._teacher import Normaliser, hadamard
from mini_internvl.train.machines import Machine, find_machine
from mini_internvl.train.optim import make_optimizer
from mini_internvl.train.parts import set_trainable
from mini_internvl.train.pictures import PictureProcessor
from mini_internvl.train.plan import Planner
from mini_internvl.train.run import run_recipe
from mini_internvl.train.run_folder import RunFolderError
from mini_internvl.train.state import newest
from tests.fake_cuda import CUDA, FakeCuda, on_cuda
from tests.train.conftest import TINY, WIDE

RECIPES = Path(__file__).parents[2] / "recipes"
OBJECTIVES = ("cosine", "smooth_l1", "relation")
NORMALISERS = ("none", "standardise", "phi_s")


@pytest.fixture
def learner(distillation, pictures):
    """``learner(features)``: the learner of a distillation, begun, and a batch of three pictures."""

    def make(features=None):
        settings = distillation(features)
        start = open_initial(settings)
        set_trainable(start.model, settings.stages[0].parts())
        torch.manual_seed(0)
        made, source = Learner(start.model, settings.stages[0]), picture_folder(pictures)
        made.loss["features"].begin(source.read(place) for place in range(7))
        process = sample_processor(start, settings.stages[0])
        return made, collate([process(source.read(place)) for place in (0, 3, 6)], 0)

    return make


def reference(settings, student, teacher, maps, normaliser):
    """The loss of hidden states in float64: lists of (N, T, width) arrays, and of (weight, bias) of maps."""
    total = 0.0
    for pair, (found, wanted) in enumerate(zip(student, teacher, strict=True)):
        if maps:
            found = found @ maps[pair][0].T + maps[pair][1]
        if settings.normalise != "none":
            wanted = wanted - normaliser["mean"][pair]
        if settings.normalise == "standardise":
            wanted = wanted / normaliser["deviation"][pair]
        if settings.normalise == "phi_s":
            wanted = wanted @ normaliser["turn"][pair].T
        if settings.objective == "cosine":
            norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
            total -= ((found * wanted).sum(-1) / norms).sum()
        elif settings.objective == "smooth_l1":
            apart = np.abs(found - wanted)
            total += np.where(apart < 1, apart**2 / 2, apart - 0.5).mean(-1).sum()
        else:
            pooled = [states[:, 1:].mean(1) for states in (found, wanted)]
            pooled = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pooled]
            apart = (pooled[0] @ pooled[0].T - pooled[1] @ pooled[1].T) ** 2
            total += (apart.sum() - np.trace(apart)) / (len(apart) - 1)
    return total / len(student)


@pytest.mark.parametrize("maps", ["auto", "always"])
@pytest.mark.parametrize("normalise", NORMALISERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradient_are_those_of_the_reference(learner, objective, normalise, maps):
    made, batch = learner({"objective": objective, "normalise": normalise, "maps": maps})
    loss = made.loss["features"]
    images = ImageFeatures(made.model, batch.tiles, last=2)
    states = [state.detach().requires_grad_() for state in images.last_states]
    images.__dict__["last_states"] = states  # else the first would get what flows back through the second too
    found = loss(made.model, batch, images)
    found.backward()

    def exact(tensors):
        return [tensor.detach().double().numpy() for tensor in tensors]

    own = exact(states)
    buffers = {name: exact(buffer) for name, buffer in loss.normaliser.named_buffers()}
    taught = exact(loss.frozen["teacher"].states(batch.tiles))
    pairs = [(layer.weight, layer.bias) for layer in loss.maps]
    assert bool(pairs) == (objective != "relation" or maps == "always")

    def value(states, shifted=0.0, direction=None):
        moved = [exact(pair) for pair in pairs]
        if direction is not None:
            moved = [
                [one + shifted * step for one, step in zip(*both, strict=True)]
                for both in zip(moved, direction, strict=True)
            ]
        return reference(loss.settings, states, taught, moved, buffers)

    assert found.item() == pytest.approx(value(own), rel=1e-5)
    draws, size = np.random.default_rng(5), 1e-5
    towards = [draws.standard_normal(state.shape) for state in own]
    up, down = (value([a + s * size * b for a, b in zip(own, towards, strict=True)]) for s in (1, -1))
    expected = (up - down) / (2 * size)
    given = sum((state.grad.numpy() * step).sum() for state, step in zip(states, towards, strict=True))
    assert given == pytest.approx(expected, rel=2e-4, abs=1e-6)
    if pairs:
        direction = [[draws.standard_normal(one.shape) for one in pair] for pair in pairs]
        up, down = (value(own, s * size, direction) for s in (1, -1))
        given = sum(
            (one.grad.numpy() * step).sum()
            for pair, both in zip(pairs, direction, strict=True)
            for one, step in zip(pair, both, strict=True)
        )
        assert given == pytest.approx((up - down) / (2 * size), rel=2e-4, abs=1e-6)


def test_the_teacher_never_trains_and_is_never_saved(learner, distillation, teacher, tmp_path):
    made, batch = learner()
    (frozen,) = made.frozen()
    frozen.states(batch.tiles)  # reads its weights
    before = {name: tensor.clone() for name, tensor in frozen.vision.state_dict().items()}
    optimizer = make_optimizer(made, distillation().stages[0])
    made.train()
    made(batch)["loss"].backward()
    optimizer.step()
    assert not frozen.vision.training
    assert not any(p.requires_grad or p.grad is not None for p in frozen.vision.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.vision.state_dict().items())
    own = {id(parameter) for parameter in frozen.vision.parameters()}
    assert not own & {id(parameter) for parameter in made.parameters()}
    assert all(parameter.grad is not None for parameter in made.parameters() if parameter.requires_grad)
    best = distil(distillation(), tmp_path / "run", workers=0)
    with safe_open(newest(tmp_path / "run/state").folder / "state.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert not any("teacher" in name or "frozen" in name for name in names)
    assert {name for name in names if name.startswith("loss.")} == {
        f"loss.features.maps.{n}.{part}" for n in (0, 1) for part in ("weight", "bias")
    }
    assert set(load_file(best / "model.safetensors")) == set(fresh_encoder(load_vision(best).config, 0).state_dict())


def test_a_student_learns_and_is_a_bare_encoder_that_build_takes(distillation, checkpoint, tmp_path):
    """The loss falls; what is saved is loaded as an encoder, and joined to a language model."""
    settings = distillation(stage={"steps": 30, "batch_size": 7, "micro_batch": 7}, precision="fp32")
    best = distil(settings, tmp_path / "run", workers=0)
    losses = [row["loss"] for row in read_log(tmp_path / "run/metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.2
    assert losses[-1] < -0.5
    raw = json.loads((best / "config.json").read_text())
    assert (raw["hidden_size"], raw["model_type"]) == (16, "intern_vit_6b")
    student = load_vision(best)
    assert student.config.layers == 3
    from tests.train.test_build import language_model

    joined = join_parts(best, language_model("qwen2", tmp_path / "llm"), tmp_path / "joined")
    kept = load_vision(joined).state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("features", [{}, {"normalise": "phi_s", "objective": "smooth_l1"}, {"objective": "relation"}])
def test_a_stopped_run_goes_on_bit_for_bit(distillation, pictures, tmp_path, features):
    held_out = (SourceRecipe(kind="pictures", path=str(pictures)),)
    settings = distillation(features, held_out=held_out, held_out_samples=3, precision="bf16")
    distil(settings, tmp_path / "whole", workers=0)
    stops = iter([False, True, False, False])
    with pytest.raises(Interrupted):
        distil(settings, tmp_path / "parts", workers=0, should_stop=lambda: next(stops))
    distil(settings, tmp_path / "parts", workers=1)
    for name in ("last", "best"):
        one, two = (load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "parts"))
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    logs = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_a_run_does_not_go_on_with_another_teacher(distillation, teacher, tmp_path):
    import shutil

    other = shutil.copytree(teacher, tmp_path / "teacher")
    settings = distillation({"teacher": str(other)})
    with pytest.raises(Interrupted):
        distil(settings, tmp_path / "run", workers=0, should_stop=lambda: True)
    state = load_file(other / "model.safetensors")
    state["encoder.layers.0.ls1"] += 1
    from safetensors.torch import save_file

    save_file(state, other / "model.safetensors")
    with pytest.raises(RunFolderError, match=r"weights that the run .* began from were replaced"):
        distil(settings, tmp_path / "run", workers=0)


def test_two_processes_distil_as_one(distillation, together, tmp_path):
    settings = distillation(
        {"normalise": "standardise", "objective": "smooth_l1"}, stage={"batch_size": 4, "micro_batch": 1}
    )
    run_recipe(settings, tmp_path / "one", workers=0)
    codes, told = together(settings, "two")
    assert codes == [0, 0], told
    for one, two in zip(*(read_log(tmp_path / name / "metrics.jsonl") for name in ("one", "two")), strict=True):
        assert two.pop("stage") == one.pop("stage")
        assert two == pytest.approx(one, rel=1e-4)


def test_pictures_of_rows_come_once_each(rows, tmp_path):
    """a.png stands in three rows and b.png in two; a text alone is no picture."""
    source = each_picture(open_source(SourceRecipe(kind="rows", path=str(rows))))
    found = [source.read(place) for place in range(len(source))]
    names = [[part.source.rpartition("/")[2] for part in sample.messages[0].images] for sample in found]
    assert names == [["a.png"], ["b.png"]]
    assert [sample.id for sample in found] == ["r0", "r1"]
    assert source.sizes_at(np.arange(2))[2].tolist() == [1, 1]


def test_pictures_of_a_folder_and_of_drawn_samples(pictures, tmp_path):
    source = picture_folder(pictures)
    assert [source.read(place).id for place in range(len(source))] == [*(f"{n}.png" for n in range(5)),
                                                                      "more/5.png", "more/6.png"]  # fmt: skip
    drawn = each_picture(open_source(SourceRecipe(kind="synth", name="words", seed=4)))
    assert (len(drawn), len(drawn.read(7).messages)) == (0, 1)
    assert drawn.read(7).id.endswith("-4-7")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        picture_folder(tmp_path / "empty")


def test_a_run_on_rows_and_drawn_pictures(distillation, rows, tmp_path):
    data = (SourceRecipe(kind="rows", path=str(rows)), SourceRecipe(kind="synth", name="words"))
    distil(distillation(stage={"data": data, "steps": 2}), tmp_path / "run", workers=0)
    rows_of = read_log(tmp_path / "run/metrics.jsonl")
    assert [row["tiles"] for row in rows_of] == [4, 4]


@pytest.mark.parametrize(("layers", "blocks"), [(None, [0, 1, 2]), (2, [1, 2]), (1, [2]), ((2, 0), [2, 0])])
def test_a_student_may_begin_as_blocks_of_its_teacher(distillation, teacher, layers, blocks):
    start = open_initial(distillation(student=StudentRecipe(start=str(teacher), layers=layers))).model.vision_model
    whole = load_vision(teacher)
    assert start.config.layers == len(blocks)
    for place, block in enumerate(blocks):
        wanted = whole.encoder.layers[block].state_dict()
        assert all(
            torch.equal(tensor, wanted[name]) for name, tensor in start.encoder.layers[place].state_dict().items()
        )
    assert torch.equal(start.embeddings.position_embedding, whole.embeddings.position_embedding)


def test_a_student_of_another_side_has_the_positions_that_the_encoder_would_resize(distillation, teacher):
    small = open_initial(distillation(student=StudentRecipe(start=str(teacher), image_size=28))).model.vision_model
    pixels = torch.randn(1, 3, 28, 28)
    torch.testing.assert_close(small(pixels), load_vision(teacher)(pixels))
    assert small.embeddings.grid == 2
    with pytest.raises(RecipeError, match=r"student\.image_size is 100; it must be a multiple of 14"):
        open_initial(distillation(student=StudentRecipe(start=str(teacher), image_size=100)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": {"layers": 4}}, "features.layers is 4; the student has 3 blocks"),
        ({"features": {"objective": "mse"}}, 'features.objective is "mse"; known: cosine'),
        ({"features": {"statistics": 0}}, "features.statistics is 0"),
        ({"features": {"keep": "fp8"}}, 'features.keep is "fp8"; known: bf16, int8'),
        ({"features": {"teacher_device": "gpu"}}, 'features.teacher_device: device is "gpu"; known: auto, cpu'),
        ({"features": {"objective": "relation"}, "stage": {"micro_batch": 1}}, "one; raise micro_batch and batch_size"),
        ({"stage": {"train": ("vision", "llm")}}, r"does not reach llm; write train: \[vision\]"),
        ({"stage": {"loss": "answers"}}, "loss answers needs a language model"),
        ({"model": "x"}, "give either model"),
        ({"student": StudentRecipe(config={**TINY, "patch_size": 28})}, "has patches of 14 pixels, the student of 28"),
        ({"student": None, "model": "x"}, "a source of pictures has no answers"),
    ],
)
def test_what_cannot_be_distilled_is_told(distillation, tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        distil(distillation(**change), tmp_path / "run", workers=0)


@pytest.mark.parametrize("layers", [0, (), (1, -1)])
def test_a_student_has_blocks(layers):
    with pytest.raises(RecipeError, match="give a number of blocks, or their numbers from 0"):
        StudentRecipe(start="nano", layers=layers)


@pytest.mark.parametrize("start", [True, False])
def test_a_damaged_config_of_an_encoder_is_named(distillation, teacher, tmp_path, start):
    damaged = tmp_path / "damaged"
    shutil.copytree(teacher, damaged)
    raw = json.loads((damaged / "config.json").read_text())
    del raw["num_hidden_layers"]
    (damaged / "config.json").write_text(json.dumps(raw))
    asked = (
        {"student": StudentRecipe(start=str(damaged), layers=2)} if start else {"features": {"teacher": str(damaged)}}
    )
    with pytest.raises(ConfigError, match=r"config\.json: .*num_hidden_layers"):
        distil(distillation(**asked), tmp_path / "run", workers=0)


def test_a_hadamard_matrix_has_one_magnitude_and_right_angles():
    for size in (1, 2, 12, 20, 28, 36, 96, 192, 1024):
        matrix = hadamard(size)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double())
        torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))
    with pytest.raises(ValueError, match="no Hadamard matrix of size 18"):
        hadamard(18)


def test_phi_s_gives_all_channels_one_variance_and_keeps_proportions():
    draws = torch.randn(4000, 24, generator=torch.Generator().manual_seed(0)).double()
    features = draws @ torch.diag(torch.logspace(-2, 1, 24).double()) @ torch.randn(24, 24).double() + 5
    whole = Normaliser("phi_s", 1, 24)
    whole.measure([[features[:1000]], [features[1000:]]])
    turned = whole(features, 0).double()
    torch.testing.assert_close(turned.mean(0), torch.zeros(24).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(turned.var(0), torch.ones(24).double(), atol=2e-3, rtol=0)
    ratios = torch.pdist(turned[:50]) / torch.pdist(features[:50])
    torch.testing.assert_close(ratios, ratios.mean().expand_as(ratios), rtol=1e-4, atol=0)
    plain = Normaliser("standardise", 1, 24)
    plain.measure([[features]])
    torch.testing.assert_close(plain(features, 0).var(0), torch.ones(24), atol=1e-3, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_whole_step_needs_no_values(distillation, objective):
    settings = distillation({"objective": objective, "normalise": "phi_s"})
    with torch.device("meta"):
        model = EncoderAlone(encoder_config({**VIT_300M, **TINY}))
    made = Learner(model, settings.stages[0]).to("meta").train()
    made(to_device(pictures_of(model.config), torch.device("meta")))["loss"].backward()
    assert all(parameter.grad is not None for parameter in made.parameters() if parameter.requires_grad)
    nn.utils.clip_grad_norm_(made.parameters(), 1.0)
    make_optimizer(made, settings.stages[0]).step()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_forward_of_distillation_stays_on_a_gpu(distillation, objective):
    settings = distillation({"objective": objective, "normalise": "standardise"})
    with torch.device("meta"):
        model = EncoderAlone(encoder_config({**VIT_300M, **TINY}))
    batch = pictures_of(model.config)
    with FakeCuda():
        made = Learner(on_cuda(model), settings.stages[0]).train()
        (frozen,) = made.frozen()
        frozen.vision = on_cuda(frozen.vision)
        assert made(to_device(batch, CUDA))["loss"].device == CUDA


def pictures_of(config, count=2):
    """A batch of pictures without content for an encoder."""
    picture = Image.new("RGB", (config.image_size, config.image_size))
    sample = Sample(id="a", messages=[{"role": "user", "content": [{"type": "image", "image": picture}]}])
    return collate([PictureProcessor(config=config)(sample)] * count, 0)


def test_micro_batches_of_any_size_give_the_same_gradient(distillation, learner):
    made, batch = learner()
    made.train()
    process = [replace(batch, sample_ids=("a",), tiles=tile[None], input_ids=batch.input_ids[:1],
                       labels=batch.labels[:1], attention_mask=batch.attention_mask[:1],
                       position_ids=batch.position_ids[:1]) for tile in batch.tiles]  # fmt: skip
    found = []
    for batches in ([batch], process):
        made.zero_grad()
        losses = accumulate(made, batches, made.count(batch), torch.device("cpu"), "fp32")
        found.append((sum(losses), [p.grad.clone() for p in made.parameters() if p.grad is not None]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


def test_a_plan_counts_the_teacher(distillation):
    (plan,) = Planner(Machine(name="cpu", kind="cpu", flops=1e9, note="")).plan(distillation())
    teacher = sum(p.numel() for p in fresh_encoder(encoder_config(WIDE).vision, 0).parameters())
    assert plan.memory["teacher"] >= 4 * teacher
    assert plan.flops.forward > 0
    assert plan.tiles == 16


def test_a_student_may_begin_as_clip(distillation, tmp_path):
    """Converted as ``model.clip`` does it, and resized to the pictures; it trains."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    settings = distillation(student=StudentRecipe(start=str(tmp_path / "clip"), image_size=56), stage={"steps": 2})
    assert (model := open_initial(settings).model.vision_model).embeddings.grid == 4
    assert torch.equal(
        model.encoder.layers[1].mlp.fc1.weight, load_vision(tmp_path / "clip").encoder.layers[1].mlp.fc1.weight
    )
    assert load_vision(distil(settings, tmp_path / "run", workers=0)).config.image_size == 56


def test_the_recipe_of_the_300m_makes_two_steps_in_full_width(tmp_path, pictures):
    """With two blocks of each, random weights, a teacher in bfloat16, a small picture; the plan holds the whole 6B."""
    wide = {**VIT_300M, **ENCODERS["6B"], "num_hidden_layers": 2, "initializer_range": 0.02}
    model = EncoderAlone(encoder_config(wide))
    save_encoder(model, tmp_path / "6b", dtype=torch.bfloat16)
    del model
    changes = [
        "student={size: 300M, config: {num_hidden_layers: 2}, image_size: 112}",
        f"stages.0.loss.features.teacher={tmp_path / '6b'}",
        "stages.0.loss.features.layers=2", "stages.0.steps=2", "stages.0.batch_size=1", "stages.0.micro_batch=1",
        f"stages.0.data.0.path={pictures}", "save_every=10", "device=cpu",
    ]  # fmt: skip
    settings = recipes.load(RECIPES / "distill_300m.yaml", changes)
    best = distil(settings, tmp_path / "run", workers=0)
    one, two = read_log(tmp_path / "run/metrics.jsonl")
    assert -1 <= two["loss"] < 1
    assert one["grad_norm"] > 0
    assert load_vision(best, device="meta").config.hidden_size == 1024
    (plan,) = Planner(find_machine("A100"), gpus=8).plan(recipes.load(RECIPES / "distill_300m.yaml"))
    assert plan.memory["teacher"] > 2 * 5.5e9  # 5.5 billion weights in bfloat16
    assert 0.25e9 * 4 < plan.memory["weights"] < 0.4e9 * 4
    assert plan.missing == ["data/pictures is not on this computer"]
