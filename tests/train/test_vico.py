"""A model gets a router: two losses against plain arithmetic, and a run whose model then answers with fewer tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import checkpoint as dcp

import mini_internvl
from mini_internvl import GenerationConfig
from mini_internvl.commands.convert import convert
from mini_internvl.commands.doctor import diagnose
from mini_internvl.engine.engine import user
from mini_internvl.inputs.tiles import normalise
from mini_internvl.model.checkpoint import load_model, save_model
from mini_internvl.model.config import FlashConfig
from mini_internvl.model.flash import cut_placeholders
from mini_internvl.recipes import LoraRecipe, RecipeError, RouterRecipe
from mini_internvl.records import Interrupted
from mini_internvl.train.batches import collate, packed_batch
from mini_internvl.train.initial import open_initial, sample_processor
from mini_internvl.train.learner import Learner
from mini_internvl.train.losses import _rates
from mini_internvl.train.losses.router import LEAST
from mini_internvl.train.parts import set_trainable
from mini_internvl.train.run import run_recipe

ALONE = ("short_projector",)


@pytest.fixture(scope="module")
def base(checkpoint, tmp_path_factory):
    """The tiny checkpoint, surer of its answers."""
    model = load_model(checkpoint)
    with torch.no_grad():
        model.language_model.lm_head.weight.mul_(30)
    files = [path for path in checkpoint.iterdir() if path.suffix != ".safetensors" and path.name != "config.json"]
    return save_model(model, tmp_path_factory.mktemp("base") / "sure", extra_files=files)


@pytest.fixture
def routed(recipe, base):
    """It with a router, whose few tokens are far from all."""
    model = open_initial(recipe(model=str(base), router=RouterRecipe())).model
    with torch.no_grad():
        for parameter in model.mlp2.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.2)
    return model


@pytest.fixture
def learning(routed, stage):
    """``learning("consistency", ...)``: it with a loss."""

    def make(name, train=ALONE, **settings):
        set_trainable(routed, train)
        return Learner(routed, stage(loss={name: settings}, train=train)).train()

    return make


@pytest.fixture
def pictured(examples):
    return [example for example in examples if len(example.tiles)]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@torch.no_grad()
def logits(model, example, short):
    """(supervised tokens, vocabulary), float64: one sample alone, its prompt cut as the engine cuts it."""
    config = model.config
    token = model.image_token_id
    patches = model.vision_model(normalise(example.tiles).double(), config.select_layer)[:, 1:]
    visual = [model.project_patches(patches[n : n + 1], short=few)[0] for n, few in enumerate(short)]
    cut = [config.tokens_per_tile, config.short_tokens, short]
    places = torch.arange(len(example.input_ids)).where(example.input_ids != token, -1)
    ids = torch.tensor([cut_placeholders(example.input_ids.tolist(), token, *cut)])
    kept = torch.tensor([place for place in places.tolist() if place >= 0])
    labels = example.labels[kept]
    hidden = model.hidden(ids, visual_tokens=torch.cat(visual)[:, None] if visual else None)[0]
    hidden = hidden[ids[0] != token]
    return model.language_model.lm_head(hidden[:-1][labels[1:] != -100]).numpy()


def divergence(model, example, short, reference=None):
    """Each supervised token's KL(reference with all tokens || model), in NumPy."""
    wanted = log_softmax(logits(reference or model, example, [False] * len(example.tiles)))
    found = log_softmax(logits(model, example, short))
    return (np.exp(wanted) * (wanted - found)).sum(-1)


@pytest.mark.parametrize("packed", [False, True])
def test_the_divergence_is_that_of_plain_arithmetic(learning, examples, monkeypatch, packed):
    """Of samples with and without images, padded and packed, with tiles of both kinds."""
    learner = learning("consistency")
    model = learner.model.double().eval()
    tiles = sum(len(example.tiles) for example in examples)
    ordered = examples if packed else sorted(examples, key=lambda one: len(one.input_ids))
    short = (torch.arange(tiles) % 3 != 0).tolist()
    monkeypatch.setattr(type(learner.loss["consistency"]), "_drawn", lambda self, documents: torch.tensor(short))
    left, wanted = list(short), []
    for example in ordered:
        own = [left.pop(0) for _ in example.tiles]
        wanted.append(divergence(model, example, own).sum())
    batch = packed_batch(ordered) if packed else collate(ordered, 0)
    sums = learner(batch)
    assert sums["loss"].item() == pytest.approx(sum(wanted), rel=1e-5)
    assert sum(wanted) > 0.01
    assert sums["count"] == int((batch.labels[:, 1:] != -100).sum())
    full, few = model.config.tokens_per_tile, model.config.short_tokens
    cut = _rates.shortened(batch, torch.tensor(short), model)
    assert int((cut.input_ids == model.image_token_id).sum()) == few * sum(short) + full * (tiles - sum(short))


def test_questions_of_one_image_stay_apart_when_its_tiles_are_short(learning, start, stage, rows):
    """Rows of independent questions give the sum over questions asked alone."""
    from mini_internvl.data.rows import read_samples

    learner = learning("consistency").eval()
    process = sample_processor(start, stage(max_length=500))
    samples = [replace(sample, independent=True) for sample in read_samples(rows)]
    together = packed_batch([process(sample) for sample in samples])
    assert together.segment_ids is not None
    alone = [
        process(replace(sample, independent=False, messages=[*_asked(sample, number)]))
        for sample in samples
        for number in range(len(sample.messages) // 2)
    ]
    with torch.no_grad():
        whole, parts = learner(together)["loss"], learner(collate(alone, 0))["loss"]
    assert whole.item() == pytest.approx(parts.item(), rel=1e-4)


def _asked(sample, number):
    """Question ``number`` with the sample's images, which the first turn shows."""
    first, *_ = sample.messages
    question, answer = sample.messages[2 * number : 2 * number + 2]
    if not number:
        return [question, answer]
    images = [part for part in first["content"] if part["type"] == "image"]
    text = question["content"] if isinstance(question["content"], str) else question["content"][0]["text"]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}, answer]


def test_no_gradient_reaches_a_reference_or_what_is_frozen(learning, pictured, base):
    learner = learning("consistency")
    learner(collate(pictured, 0))["loss"].backward()
    with_gradients = {name for name, parameter in learner.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[1] for name in with_gradients} == {"mlp2"}
    assert any(parameter.grad.any() for parameter in learner.model.mlp2.parameters())
    parts = ("vision", "projector", "llm", *ALONE)
    whole = learning("consistency", train=parts, reference=str(base))
    whole(collate(pictured, 0))["loss"].backward()
    assert {name.split(".")[1] for name, p in whole.named_parameters() if p.grad is not None} == {
        "mlp1", "mlp2", "vision_model", "language_model",
    }  # fmt: skip
    frozen = whole.loss["consistency"].frozen["reference"]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen.parameters())
    assert not [name for name in whole.state_dict() if "reference" in name]


def test_a_reference_apart_is_the_model_itself_while_they_are_equal(learning, pictured, base):
    batch = collate(pictured, 0)
    with torch.no_grad():
        own, other = (
            learning("consistency", **given).eval()(batch)["loss"] for given in ({}, {"reference": str(base)})
        )
    assert own.item() == pytest.approx(other.item(), rel=1e-5)


def test_a_batch_of_text_alone_and_one_without_samples_give_every_trained_weight_a_gradient(learning, examples):
    text = next(example for example in examples if not len(example.tiles))
    for name, train in (("consistency", ALONE), ("router", ("router",))):
        learner = learning(name, train=train)
        for batch in (collate([text], 0), replace(collate([text], 0), sample_ids=())):
            learner.zero_grad()
            loss = learner(batch)["loss"]
            loss.backward()
            assert loss.item() == 0
            trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
            assert trained
            assert all(parameter.grad is not None for parameter in trained)


def test_targets_of_losses_made_by_hand(learning):
    """Those below the percentile of the latest ratios need few tokens; old ratios are forgotten."""
    loss = learning("router", train=("router",), percentile=50, window=4).loss["router"]
    assert loss.targets(torch.tensor([3.0])).tolist() == [1]  # it is its own median
    assert loss.targets(torch.tensor([1.0, 5.0])).tolist() == [0, 1]  # 3 1 5
    assert loss.targets(torch.tensor([2.0, 2.0, 9.0])).tolist() == [0, 0, 1]  # 3 1 5 2 2 9: the median is 2.5
    assert loss.latest.tolist() == [5.0, 2.0, 2.0, 9.0]
    before = loss.latest.clone()
    loss.eval()
    assert loss.targets(torch.tensor([3.0, 4.0])).tolist() == [0, 1]  # 5 2 2 9 3 4: 3.5
    assert torch.equal(loss.latest, before)
    low = learning("router", train=("router",), percentile=25, window=8).loss["router"]
    assert low.targets(torch.arange(9.0)).tolist() == [0, 0] + [1] * 7


@pytest.mark.parametrize("probe", ["tile", "image"])
def test_ratios_are_of_losses_with_few_tokens_and_with_all(learning, pictured, base, probe, monkeypatch):
    """With another reference than the model, sample by sample, in NumPy."""
    learner = learning("router", train=("router",), reference=str(base), probe=probe)
    with torch.no_grad():  # the model is no longer its reference
        learner.model.mlp1[3].weight.mul_(-5)
    learner.double()
    loss, seen = learner.loss["router"], []
    reference = loss.frozen["reference"]
    reference.states(collate(pictured, 0))  # reads its weights
    monkeypatch.setattr(type(reference), "states", lambda self, batch: _states(self.model, batch))
    reference.model.double()
    monkeypatch.setattr(
        type(loss), "targets", lambda self, ratios: seen.append(ratios) or torch.zeros(len(ratios)).long()
    )
    torch.manual_seed(0)
    batch = packed_batch(pictured)
    probed = loss._probed(_rates.tile_documents(batch, learner.model))
    torch.manual_seed(0)
    learner(batch)
    wanted, left = [], probed.tolist()
    learner.model.eval()
    for example in pictured:
        own = [left.pop(0) for _ in example.tiles]
        assert sum(own) == (1 if probe == "tile" else len(own))
        few, full = (
            divergence(learner.model, example, one, reference.model).mean() for one in (own, [False] * len(own))
        )
        wanted += [few / max(full, LEAST)] * sum(own)
    np.testing.assert_allclose(seen[0].numpy(), wanted, rtol=1e-4)


def _states(model, batch):
    with torch.no_grad():
        return _rates.states_of(model, batch, model.encode_images(normalise(batch.tiles).double()))


def test_the_router_learns_which_tiles_lose_little(learning, pictured):
    """It fits the targets of one batch by heart, and nothing else changes."""
    learner = learning("router", train=("router",), probe="image")
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = learner(collate(pictured, 0))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    changed = {
        name.split(".")[0] for name, value in learner.model.state_dict().items() if (value != before[name]).any()
    }
    assert changed == {"gating", "pooling_before_gating"}


@pytest.fixture
def vico(recipe, stage, base):
    """A run of both stages."""

    def make(steps=(3, 3), **settings):
        stages = (
            stage(name="consistency", loss="consistency", train=ALONE, steps=steps[0], lr=3e-3),
            stage(name="router", loss={"router": {"window": 6}}, train=("router",), steps=steps[1], lr=1e-3),
        )
        plain = {"model": str(base), "stages": stages, "router": RouterRecipe(absolute=0.4)}
        return recipe(**(plain | settings))

    return make


def test_a_stopped_run_goes_on_bit_for_bit_and_its_model_answers_with_fewer_tokens(vico, tmp_path, image):
    whole = run_recipe(vico(), tmp_path / "whole")
    for steps in (2, 3):  # in the first stage, and in the second
        made = []
        with pytest.raises(Interrupted):
            run_recipe(
                vico(),
                tmp_path / "parts",
                on_progress=made.append,
                should_stop=lambda: len(made) >= steps,  # noqa: B023
            )
    run_recipe(vico(), tmp_path / "parts")
    for name in ("last", "best"):
        first, second = (tmp_path / run / name / "model.safetensors" for run in ("whole", "parts"))
        assert first.read_bytes() == second.read_bytes()
    assert diagnose(whole).healthy
    engine = mini_internvl.load(whole, dtype="float32")
    assert engine.flash == FlashConfig(relative=0.0, absolute=0.4)
    engine.flash = FlashConfig(relative=0.0, absolute=0.0)
    asked = user("What?", str(image))
    reply = engine.chat(asked, GenerationConfig(max_new_tokens=2))
    each = engine.model.config.tokens_per_tile - engine.model.config.short_tokens
    assert reply.saved == each * (engine.count_tiles(asked) - 1) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # told to whoever reads a state alone
def test_two_processes_share_the_latest_ratios(vico, together, tmp_path):
    """None waits for a gradient, batches of text alone included, and what goes on does so bit for bit."""
    settings = vico(save_every=2)
    for name in ("whole", "parts"):
        codes, told = together(settings, name)
        assert codes == [0, 0], told
        for state in sorted((tmp_path / "parts/state").glob("*"))[1:] if name == "parts" else ():
            shutil.rmtree(state)  # as if it had been killed after the one before
    shutil.rmtree(tmp_path / "parts/last")
    codes, told = together(settings, "parts")
    assert codes == [0, 0], told
    first, second = (load_file(tmp_path / name / "last/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())
    latest = [{"loss.router.latest": torch.zeros(6)} for _ in range(2)]
    for held, name in zip(latest, ("whole", "parts"), strict=True):
        dcp.load(held, checkpoint_id=max((tmp_path / name / "state").glob("*")), no_dist=True)
    first, second = (held["loss.router.latest"] for held in latest)
    assert torch.equal(first.isnan(), second.isnan())
    assert not first.isnan().all()
    assert torch.equal(first.nan_to_num(), second.nan_to_num())


def test_kept_features_change_nothing(vico, tmp_path, monkeypatch):
    """But what bfloat16 rounds."""
    monkeypatch.setenv("MINIVL_CACHE", str(tmp_path / "cache"))
    plain = vico(steps=(2, 2))
    kept = replace(plain, stages=tuple(replace(one, cache=True) for one in plain.stages))
    losses = []
    for name, settings in (("plain", plain), ("kept", kept)):
        run_recipe(settings, tmp_path / name)
        log = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, log) if "loss" in row])
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.1)


@pytest.mark.parametrize(
    ("loss", "train", "message"),
    [
        ("consistency", ("short_projector", "llm"), "llm trains, so the model cannot be its own reference"),
        ({"router": {}, "consistency": {}}, ("router", *ALONE), "short_projector trains beside the router"),
        ("consistency", ("router",), r"loss consistency does not reach router; write train: \[vision"),
        ({"consistency": {"draw": "row"}}, ALONE, 'consistency.draw is "row"; known: tile, image'),
        ({"router": {"percentile": 100}}, ("router",), "router.percentile is 100.0; it must be between 0 and 100"),
        ("answers", ("router",), "loss answers does not reach router"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(stage, loss, train, message):
    with pytest.raises(RecipeError, match=message):
        stage(loss=loss, train=train)


def test_a_recipe_that_makes_no_sense_is_refused(vico, recipe, stage, base, tmp_path):
    with pytest.raises(RecipeError, match=r"consistency runs the model several times, which cannot be sharded"):
        vico(parallel="fsdp")
    with pytest.raises(RecipeError, match=r"router\.absolute is 2; it must be from 0 to 1"):
        RouterRecipe(absolute=2)
    only = stage(loss="consistency", train=ALONE)
    with pytest.raises(
        RecipeError, match=r"train names short_projector, which this model has not; give it one: router: {}"
    ):
        run_recipe(recipe(stages=(only,)), tmp_path / "none")
    convert(base, tmp_path / "native", "native")
    with pytest.raises(RecipeError, match=r"native cannot be saved with one: this is a Flash model"):
        run_recipe(vico(model=str(tmp_path / "native")), tmp_path / "run")
    for settings in ({"lora": LoraRecipe()}, {"lora": LoraRecipe(), "router": RouterRecipe(), "stages": (stage(),)}):
        with pytest.raises(RecipeError, match=r"(short_projector|router) is not kept beside adapters; leave lora out"):
            recipe(**{"stages": (only,), **settings})
