"""The loss over patches: labels where the marks are, heads that learn, train and resume like everything else."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file

from mini_internvl import synth
from mini_internvl.recipes import SourceRecipe
from mini_internvl.records import Interrupted, PatchAnnotation
from mini_internvl.train.batches import collate
from mini_internvl.train.data import MixedDataset, step_batches
from mini_internvl.train.initial import sample_processor
from mini_internvl.train.loop import held_out_loss
from mini_internvl.train.losses import held_out_sources
from mini_internvl.train.losses.patches import IGNORE, LINES, PLACES, SHADES, THINGS, patch_labels
from mini_internvl.train.run import run_recipe
from mini_internvl.train.state import newest


def annotate(text, left, top, right, bottom, place=None, line=None):
    return PatchAnnotation(text=text, box=(left, top, right, bottom), place=place, line=line)


RED_RING = PatchAnnotation(text="ring", box=(0.5, 0.5, 1, 1), colour="red")


def test_a_patch_is_labelled_with_what_covers_most_of_it():
    patch_annotations = [annotate("a", 0.0, 0.0, 0.3, 0.25, 2, 1), annotate("B", 0.3, 0.0, 0.5, 0.25, 3, 1), RED_RING]
    labels = patch_labels(patch_annotations, (1, 1), False, 4)
    assert labels.shape == (1, 16, 4)
    things = labels[0, :, 0].reshape(4, 4)
    assert things[0].tolist() == [THINGS["a"], THINGS["B"], 0, 0]
    assert (things[2:, 2:] == THINGS["ring"]).all()
    assert (things[2:, :2] == 0).all()
    assert labels[0, 0].tolist() == [THINGS["a"], 2, 1, IGNORE]
    assert labels[0, 15].tolist() == [THINGS["ring"], IGNORE, IGNORE, SHADES["red"]]
    assert labels[0, 2].tolist() == [0, IGNORE, IGNORE, IGNORE]


def test_tiles_come_row_by_row_and_the_thumbnail_last():
    patch_annotations = [annotate("a", 0.5, 0.0, 0.75, 0.5, 0, 0), annotate("star", 0, 0.5, 0.5, 1)]
    labels = patch_labels(patch_annotations, (2, 2), True, 4)
    assert labels.shape == (5, 16, 4)
    present = [set(tile[:, 0].tolist()) - {0} for tile in labels]
    assert present == [set(), {THINGS["a"]}, {THINGS["star"]}, set(), {THINGS["a"], THINGS["star"]}]
    assert (labels[2, :, 0] == THINGS["star"]).all()


def test_what_is_too_small_or_unknown_is_not_asked_for_and_late_places_share_a_label():
    small = patch_labels([annotate("a", 0, 0, 0.2, 0.05)], (1, 1), False, 4)
    unknown = patch_labels([annotate("中", 0, 0, 0.25, 0.25, 1, 1)], (1, 1), False, 4)
    assert small[0, 0].tolist() == [IGNORE] * 4 or small[0, 0, 0] == 0
    assert unknown[0, 0].tolist() == [IGNORE] * 4
    late = patch_labels([annotate("a", 0, 0, 0.25, 0.25, 99, 99)], (1, 1), False, 4)
    assert late[0, 0].tolist() == [THINGS["a"], PLACES - 1, LINES - 1, IGNORE]


@pytest.mark.parametrize("kind", synth.annotated_kinds())
def test_marks_lie_on_ink(kind):
    """Colours differ within every marked box and its rim."""
    for index in range(20):
        sample = synth.make(kind, 3, index)
        image = sample.messages[0]["content"][0]["image"]
        assert sample.patch_annotations
        for found in sample.patch_annotations:
            left, top, right, bottom = found.box
            box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
            rim = (
                max(0, box[0] - 3),
                max(0, box[1] - 3),
                min(image.width, box[2] + 3),
                min(image.height, box[3] + 3),
            )
            extremes = image.crop(tuple(map(round, rim))).getextrema()
            assert max(high - low for low, high in extremes) > 20, (kind, index, found)
            assert found.text in THINGS


@pytest.mark.parametrize("kind", ["lines", "lines_plain", "lines_digits"])
def test_the_marks_of_a_page_spell_its_text(kind):
    for index in range(20):
        sample = synth.make(kind, 4, index)
        lines = sample.messages[1]["content"].split("\n")
        spelled = {(found.line, found.place): found.text for found in sample.patch_annotations}
        assert all(lines[line][place] == text for (line, place), text in spelled.items())
        assert len(spelled) == sum(len(line.replace(" ", "")) for line in lines)


@pytest.fixture
def source():
    return SourceRecipe(kind="synth", name="lines_digits")


@pytest.fixture
def patch_stage(stage, source):
    return lambda **changes: stage(loss="patches", train=("vision",), data=(source,), **changes)


def test_the_count_is_of_patches_with_something_on_them(start, learner, patch_stage, source):
    process = sample_processor(start, patch_stage())
    examples = [process(synth.make(source.name, 0, index)) for index in range(3)]
    loss = learner("patches", train=("vision",))
    batch = collate(examples, 0)
    marked = int((batch.extras["patches"][..., 0] > 0).sum())
    assert loss.count(batch) == marked > 0
    whole = held_out_loss(loss, [batch])
    parts = held_out_loss(loss, [collate(examples[:1], 0), collate(examples[1:], 0)])
    assert parts == pytest.approx(whole, rel=1e-5)


def test_the_heads_and_the_encoder_learn_and_nothing_else(start, recipe, patch_stage, tmp_path):
    told = []
    settings = recipe(stages=(patch_stage(steps=30, lr=5e-3),))
    best = run_recipe(settings, tmp_path, workers=0, on_progress=told.append)
    assert told[-1].loss < 0.8 * told[0].loss
    assert "held_out_loss" in told[2].held_out
    state = load_file(newest(tmp_path / "state").folder / "state.safetensors")
    assert any(name.startswith("loss.patches.thing") for name in state)
    before = start.model.state_dict()
    after = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    assert {name for name in before if name.startswith("vision_model")} == set(after)  # what is frozen is not saved
    assert not any(torch.equal(before[name], value) for name, value in after.items() if "weight" in name)
    assert not any(name.startswith(("loss", "thing")) for name in load_file(best / "model.safetensors"))


def test_beside_the_answers_both_losses_reach_the_encoder(start, learner, stage, source):
    losses = {"answers": {}, "patches": {"weight": 0.5}}
    process = sample_processor(start, stage(loss=losses))
    batch = collate([process(synth.make(name, 0, 1)) for name in (source.name, "text")], 0)
    both, answers = learner(losses), learner()
    patches = learner("patches", train=("vision",))
    patches.loss["patches"].load_state_dict(both.loss["patches"].state_dict())
    expected = answers(batch)["loss"].item() + 0.5 * patches(batch)["loss"].item()
    assert both.train()(batch)["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert both.count(batch) == answers.count(batch)
    assert both.eval()(batch)["loss"].item() == pytest.approx(answers(batch)["loss"].item(), rel=1e-5)
    labels = batch.extras["patches"]
    marked = len(process(synth.make(source.name, 0, 1)).tiles)
    assert (labels[:marked, :, 0] >= 0).any()
    assert (labels[marked:] == IGNORE).all()


def test_stopped_and_continued_equals_uninterrupted(recipe, patch_stage, stage, source, tmp_path):
    with_both = {"loss": {"answers": {}, "patches": {"weight": 0.3}}, "optimizer": "muon", "data": (source,)}
    settings = recipe(stages=(patch_stage(steps=3), stage(name="two", steps=2, **with_both)))
    run_recipe(settings, tmp_path / "whole", workers=0)
    for stage_name in ("one", "one", "one", "two"):
        with pytest.raises(Interrupted):
            run_recipe(settings, tmp_path / "parts", workers=0, should_stop=lambda: True)
        assert newest(tmp_path / "parts/state").counters["stage"] == stage_name
    run_recipe(settings, tmp_path / "parts", workers=0)
    folders = (newest(tmp_path / name / "state").folder for name in ("whole", "parts"))
    first, second = (load_file(folder / "state.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_samples_without_annotations_are_refused_by_name(start, stage):
    row = stage(loss="patches", train=("vision",))
    dataset = MixedDataset(row, sample_processor(start, row), seed=0)
    reasons = [one.reason for one in next(step_batches(dataset, 0, workers=0)).unusable]
    assert re.search(r"sample rows/r.: no patch annotations of one image, which .* needs; use", reasons[0])


def test_the_held_out_loss_is_over_images_with_marks(recipe, patch_stage):
    shapes, text = (SourceRecipe(kind="synth", name=name, split="test") for name in ("shapes", "text"))
    settings = recipe(stages=(patch_stage(),), held_out=(shapes, text))
    sources = held_out_sources(settings, settings.stages[0])
    assert [(s.name, s.split) for s in sources] == [("shapes", "test"), ("lines_digits", "test")]
