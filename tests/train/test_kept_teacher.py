"""A teacher whose features are kept: it runs once, and a run does not depend on what was kept before."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mini_internvl.recipes import RecipeError, SourceRecipe, to_dict
from mini_internvl.records import Interrupted
from mini_internvl.train.distil import distil
from mini_internvl.train.initial import open_initial
from mini_internvl.train.kept import KeptFeatures
from mini_internvl.train.learner import Learner
from mini_internvl.train.log import read_log
from mini_internvl.train.losses import _teacher
from mini_internvl.train.machines import Machine
from mini_internvl.train.plan import Planner
from mini_internvl.train.run import run_recipe
from mini_internvl.train.shards import RECORD, Shards
from tests.train.test_features import entries, spoil

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_training.py"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of this test alone."""
    monkeypatch.setenv("MINIVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/features"


def same(first, second):
    for name in ("last", "best"):
        a, b = (load_file(run / name / "model.safetensors") for run in (first, second))
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("form", ["bf16", "int8"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_is_the_same_whatever_was_kept(distillation, pictures, cache, tmp_path, monkeypatch, form, workers):
    """Nothing ever kept, kept as the run goes, stopped and gone on with an entry gone, and all kept: no teacher."""
    held_out = (SourceRecipe(kind="pictures", path=str(pictures)),)
    features = {"keep": form, "normalise": "standardise", "objective": "smooth_l1"}
    settings = distillation(features, held_out=held_out, held_out_samples=3)
    distil(replace(settings, cache_gb=0.0), tmp_path / "without", workers=workers)
    assert entries(cache) == {}
    distil(settings, tmp_path / "first", workers=workers)
    assert len(entries(cache)) == 7
    stops = iter([False, True, False, False, False])
    with pytest.raises(Interrupted):
        distil(settings, tmp_path / "parts", workers=workers, should_stop=lambda: next(stops))
    spoil(next(iter(entries(cache).values())))
    distil(settings, tmp_path / "parts", workers=workers)

    def refuse(*_, **__):
        raise AssertionError("the teacher is read")

    monkeypatch.setattr(_teacher, "load_vision", refuse)
    distil(settings, tmp_path / "again", workers=workers)
    for name in ("first", "parts", "again"):
        same(tmp_path / "without", tmp_path / name)


def test_drawn_pictures_are_kept_too(distillation, cache, tmp_path, monkeypatch):
    settings = distillation({"keep": "bf16"}, stage={"data": (SourceRecipe(kind="synth", name="words", seed=3),)})
    distil(settings, tmp_path / "first", workers=0)
    assert len(entries(cache)) == 16
    monkeypatch.setattr(_teacher, "load_vision", None)
    distil(settings, tmp_path / "again", workers=0)
    same(tmp_path / "first", tmp_path / "again")


def test_what_is_kept_is_near_what_the_teacher_gives(distillation, tmp_path):
    """A bound for each value: half of the last bit of bfloat16, or of a step of the token's scale in 8 bits."""
    draws = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 24)
    for form, bound in (("bf16", 2**-8 * draws.abs()), ("int8", draws.abs().amax(-1, keepdim=True) / 127 * 0.501)):
        kept = KeptFeatures(tmp_path, form, shape=(5, 24), limit=10**9, form=form)
        for place, features in enumerate(draws):
            kept.store(f"{place:032x}", kept.pack(features[None]))
        found = torch.cat([KeptFeatures(tmp_path, form, shape=(5, 24), limit=0, form=form).load(f"{n:032x}", 1)
                           for n in range(3)])  # fmt: skip
        assert found.nbytes == 3 * kept.tile_bytes
        assert ((kept.unpack(found).float() - draws).abs() <= bound + 1e-12).all()


def test_keys_tell_teachers_types_and_depths_apart(distillation, teacher, tmp_path):
    def key(**changes):
        settings = distillation({"keep": "bf16"} | changes)
        learner = Learner(open_initial(settings).model, settings.stages[0])
        return learner.loss["features"].open_store(tmp_path, 0).encoder

    keys = [key(), key(teacher_dtype="bf16"), key(layers=1), key(teacher="nano", layers=2)]
    assert len({*keys}) == 4
    assert key(normalise="phi_s", objective="smooth_l1") == keys[0]


def test_whole_models_keep_no_teacher(recipe, teacher):
    loss = {"features": {"teacher": str(teacher), "layers": 2, "keep": "bf16"}}
    settings = recipe({"loss": loss, "train": ("vision",)})
    model = open_initial(settings).model
    with pytest.raises(RecipeError, match="is for a student that trains alone"):
        Learner(model, settings.stages[0])


def test_two_processes_with_a_kept_teacher_distil_as_one(distillation, together, cache, tmp_path):
    settings = distillation({"keep": "int8"}, stage={"micro_batch": 1})
    run_recipe(settings, tmp_path / "one", workers=0)
    spoil(next(iter(entries(cache).values())))
    codes, told = together(settings, "two")
    assert codes == [0, 0], told
    for one, two in zip(*(read_log(tmp_path / name / "metrics.jsonl") for name in ("one", "two")), strict=True):
        assert two.pop("stage") == one.pop("stage")
        assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["", "int8"])
def test_kills_change_nothing(distillation, tmp_path, keep):
    """SIGKILL at random moments, with a live teacher and with kept features."""
    settings = distillation({"keep": keep, "normalise": "phi_s", "objective": "smooth_l1"}, stage={"steps": 12})
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(to_dict(settings)))
    command = [sys.executable, SCRIPT, path, tmp_path / "runs", "--kills", "2", "--stops", "1", "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 differ" in done.stdout


def test_a_plan_counts_what_is_kept(distillation, pictures):
    plan = Planner(Machine(name="cpu", kind="cpu", flops=1e9, note="")).plan
    live, kept, few = (
        plan(distillation({"keep": keep}, stage={"steps": 100}, cache_gb=limit))[0]
        for keep, limit in (("", 1.0), ("int8", 1.0), ("int8", 0.0))
    )
    assert live.kept == few.kept == 0
    assert kept.kept == 7 * 2 * 17 * (24 + 4)
    assert kept.flops.forward < live.flops.forward == few.flops.forward


@given(st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shards_give_back_what_any_writer_has_put(tmp_path_factory, data):
    """Several writers and readers in any order; one is killed in the middle of a record; a value is damaged."""
    folder = tmp_path_factory.mktemp("shards")
    writers, known = [Shards(folder) for _ in range(3)], {}
    for number in range(data.draw(st.integers(1, 12))):
        key, value = bytes([number % 5]) * 16, data.draw(st.binary(min_size=1, max_size=40))
        writers[data.draw(st.integers(0, 2))].put(key, memoryview(value))
        known.setdefault(key, set()).add(value)
    for index in folder.glob("*.index"):
        with index.open("ab") as file:
            file.write(bytes(data.draw(st.integers(0, RECORD.size - 1))))
    reader = Shards(folder)
    for key, values in known.items():
        assert bytes(reader.get(key)) in values
    assert reader.get(b"x" * 16) is None
