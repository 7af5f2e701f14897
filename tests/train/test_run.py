"""Whole runs: stopped and continued equals uninterrupted, bit for bit; folders and checkpoints."""

from __future__ import annotations

import json
import shutil
from itertools import count

import pytest
import torch
from safetensors.torch import load_file

from mini_internvl.engine import load
from mini_internvl.model.checkpoint import load_model
from mini_internvl.recipes import LoraRecipe
from mini_internvl.records import Interrupted
from mini_internvl.train import loop, run, run_folder
from mini_internvl.train.initial import open_initial
from mini_internvl.train.log import read_log
from mini_internvl.train.run import run_recipe
from mini_internvl.train.samples import read_samples
from mini_internvl.train.state import newest


def log(folder):
    return read_log(folder / "metrics.jsonl")


def same(first, second):
    """Every tensor of two runs' states and checkpoints."""
    states = sorted(path.name for path in (first / "state").iterdir())
    assert states == sorted(path.name for path in (second / "state").iterdir())
    for name in (f"state/{states[-1]}/state.safetensors", "last/model.safetensors", "best/model.safetensors"):
        a, b = load_file(first / name), load_file(second / name)
        assert a.keys() == b.keys()
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, (name, different[:3])
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()


def stop_after(steps):
    asked = count(1)
    return lambda: next(asked) >= steps


class Killed(Exception):
    """Stands for a kill that nothing can prepare for."""


@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_and_continued_equals_uninterrupted(recipe, tmp_path, workers):
    """With drop path, so that random numbers count; stopped between two saves, then killed after one."""
    settings = recipe({"drop_path": 0.5, "steps": 6})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_recipe(settings, whole, workers=workers)
    with pytest.raises(Interrupted, match="stopped after step 1 of 6 in one; the state is saved"):
        run_recipe(settings, parts, workers=workers, should_stop=stop_after(1))
    assert newest(parts / "state").counters["step"] == 1

    def kill(progress):
        if progress.step == 5:
            raise Killed

    with pytest.raises(Killed):
        run_recipe(settings, parts, workers=workers, on_progress=kill)
    assert newest(parts / "state").counters["step"] == 4
    run_recipe(settings, parts, workers=workers)
    same(whole, parts)
    assert [row["step"] for row in log(parts)] == [1, 2, 3, 4, 5, 6]
    assert {"stage", "step", "loss", "lr", "grad_norm"} <= log(parts)[0].keys()
    assert "held_out_loss" in log(parts)[2]


def test_answers_work_and_memory_are_told_of_a_run(recipe, tmp_path):
    """Also after a stop: the same answers, while the log of speeds holds what depends on the clock."""
    settings = recipe({"steps": 6}, shown_samples=2)
    run_recipe(settings, tmp_path / "whole", workers=0)
    with pytest.raises(Interrupted):
        run_recipe(settings, tmp_path / "parts", workers=0, should_stop=stop_after(4))
    run_recipe(settings, tmp_path / "parts", workers=0)
    answers = [read_samples(tmp_path / name) for name in ("whole", "parts")]
    assert answers[0] == answers[1]
    assert [(record["step"], len(record["samples"])) for record in answers[0]] == [(3, 2), (6, 2)]
    for row in read_log(tmp_path / "whole/speed.jsonl"):
        assert row["flops_per_s"] > 0
        assert row["memory"] > 1e8
        assert "mfu" not in row  # of a processor whose peak is not known
    run_recipe(recipe({"steps": 3}, shown_samples=0), tmp_path / "none", workers=0)
    assert not (tmp_path / "none/samples").exists()


def test_workers_change_nothing(recipe, tmp_path):
    for workers in (0, 1):
        run_recipe(recipe({"steps": 2}), tmp_path / str(workers), workers=workers)
    same(tmp_path / "0", tmp_path / "1")


def test_two_stages_stopped_between_them_and_in_the_second(recipe, stage, tmp_path):
    settings = recipe(stages=(stage(steps=2, train=("projector",)), stage(name="two", steps=3, drop_path=0.5)))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_recipe(settings, whole, workers=0)
    for stops, where in ((2, "step 2 of 2 in one"), (1, "step 1 of 3 in two")):
        with pytest.raises(Interrupted, match=where):
            run_recipe(settings, parts, workers=0, should_stop=stop_after(stops))
    run_recipe(settings, parts, workers=0)
    same(whole, parts)
    assert [(row["stage"], row["step"]) for row in log(parts)] == [
        ("one", 1),
        ("one", 2),
        ("two", 1),
        ("two", 2),
        ("two", 3),
    ]


def test_a_finished_run_is_not_run_again(recipe, tmp_path):
    settings = recipe({"steps": 2})
    best = run_recipe(settings, tmp_path, workers=0)
    before = (tmp_path / "metrics.jsonl").read_bytes(), (best / "model.safetensors").read_bytes()
    told = []
    assert run_recipe(settings, tmp_path, workers=0, on_progress=told.append) == best == tmp_path / "best"
    assert told == []
    assert ((tmp_path / "metrics.jsonl").read_bytes(), (best / "model.safetensors").read_bytes()) == before


@pytest.mark.parametrize("lora", [None, LoraRecipe(rank=2)])
def test_a_kill_before_the_last_checkpoint_loses_nothing(recipe, tmp_path, lora):
    settings = recipe({"steps": 2, "lr": 1e-2}, lora=lora)
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    run_recipe(settings, tmp_path, workers=0)
    trained = (tmp_path / "last" / name).read_bytes()
    shutil.rmtree(tmp_path / "last")
    run_recipe(settings, tmp_path, workers=0)
    assert (tmp_path / "last" / name).read_bytes() == trained


def test_a_kill_before_the_last_checkpoint_of_an_extended_run_loses_nothing(recipe, tmp_path, monkeypatch):
    """The one that is there is of the run before it was extended."""
    run_recipe(recipe({"steps": 2}), tmp_path / "run", workers=0)
    before = (tmp_path / "run/last/model.safetensors").read_bytes()
    longer, save = recipe({"steps": 4}), run.save_checkpoint

    def killed(start, folder, *given):
        if folder.name == "last":
            raise Killed
        save(start, folder, *given)

    with monkeypatch.context() as patched:
        patched.setattr(run, "save_checkpoint", killed)
        with pytest.raises(Killed):
            run_recipe(longer, tmp_path / "run", workers=0, extend=True)
    assert (tmp_path / "run/last/model.safetensors").read_bytes() == before
    run_recipe(longer, tmp_path / "run", workers=0)
    assert (tmp_path / "run/last/model.safetensors").read_bytes() != before
    assert not (tmp_path / "run/last/.stale").exists()


def test_training_learns_and_its_checkpoints_answer(recipe, tmp_path):
    told = []
    best = run_recipe(recipe({"steps": 12, "lr": 3e-3}), tmp_path, workers=0, on_progress=told.append)
    assert told[-1].loss < 0.8 * told[0].loss
    assert [bool(progress.held_out) for progress in told] == [step % 3 == 0 for step in range(1, 13)]
    assert {t.dtype for t in load_file(best / "model.safetensors").values()} == {torch.bfloat16}
    assert load(best, device="cpu").chat([{"role": "user", "content": "Hi"}]).tokens >= 0


def test_the_best_checkpoint_is_the_one_that_measured_best(recipe, tmp_path):
    scores = iter([0.5, 0.9, 0.7])
    seen = []

    def probe(model):
        assert not model.training
        seen.append(model.mlp1[1].bias.detach().to(torch.bfloat16).clone())
        return {"score": next(scores)}

    best = run_recipe(recipe({"steps": 3}, eval_every=1), tmp_path, workers=0, probe=probe)
    assert best.name == "best"
    assert torch.equal(load_file(best / "model.safetensors")["mlp1.1.bias"], seen[1])
    assert torch.equal(load_file(tmp_path / "last/model.safetensors")["mlp1.1.bias"], seen[2])
    assert [row["score"] for row in log(tmp_path)] == [0.5, 0.9, 0.7]
    assert all("held_out_loss" in row for row in log(tmp_path))


def test_a_later_run_does_not_forget_the_best_score(recipe, tmp_path):
    settings = recipe({"steps": 3}, eval_every=1, save_every=1)
    first, second = iter([0.9]), iter([0.5, 0.6])
    with pytest.raises(Interrupted):
        run_recipe(settings, tmp_path, workers=0, probe=lambda m: {"score": next(first)}, should_stop=lambda: True)
    kept = (tmp_path / "best/model.safetensors").read_bytes()
    run_recipe(settings, tmp_path, workers=0, probe=lambda m: {"score": next(second)})
    assert (tmp_path / "best/model.safetensors").read_bytes() == kept


def test_without_held_out_data_the_last_checkpoint_is_the_result(recipe, tmp_path):
    best = run_recipe(recipe({"steps": 2}, held_out=(), eval_every=1), tmp_path, workers=0)
    assert load_file(best / "model.safetensors").keys() == load_file(tmp_path / "last/model.safetensors").keys()
    last = load_file(tmp_path / "last/model.safetensors")
    assert all(torch.equal(last[key], value) for key, value in load_file(best / "model.safetensors").items())
    assert (best / "tokenizer_config.json").exists()


def test_a_fresh_model_is_built_from_a_folder(checkpoint, recipe, tmp_path):
    names = ("config.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json")
    folder = tmp_path / "build"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    settings = recipe({"steps": 1}, model="", build=str(folder), seed=3)
    first, second = open_initial(settings).model, open_initial(settings).model
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.image_token_id == load_model(checkpoint).image_token_id
    run_recipe(settings, tmp_path / "run", workers=0)
    assert (tmp_path / "run/best/vocab.json").exists()


@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_is_settled_once(recipe, tmp_path, monkeypatch, fast):
    monkeypatch.setattr(run_folder, "fast_bfloat16", lambda device: fast)
    settings = recipe({"steps": 1}, precision="auto")
    run_recipe(settings, tmp_path, workers=0)
    assert json.loads((tmp_path / "recipe.json").read_text())["precision"] == ("bf16" if fast else "fp32")
    monkeypatch.setattr(run_folder, "fast_bfloat16", lambda device: not fast)  # the run goes on elsewhere
    run_recipe(settings, tmp_path, workers=0)
    assert json.loads((tmp_path / "recipe.json").read_text())["precision"] == ("bf16" if fast else "fp32")


def test_a_stage_ends_when_it_no_longer_gets_better(recipe, tmp_path):
    """After two measurements without a better score; a finished run stays finished, unless it is extended."""
    scores = iter([0.1, 0.5, 0.5, 0.4, 0.9, 0.9])
    settings = recipe({"steps": 12}, eval_every=2, patience=2)
    run_recipe(settings, tmp_path, workers=0, probe=lambda model: {"score": next(scores)})
    assert read_log(tmp_path / "metrics.jsonl")[-1]["step"] == 8
    run_recipe(settings, tmp_path, workers=0, probe=lambda model: {"score": next(scores)})
    assert read_log(tmp_path / "metrics.jsonl")[-1]["step"] == 8
    run_recipe(settings, tmp_path, workers=0, probe=lambda model: {"score": next(scores)}, extend=True)
    assert read_log(tmp_path / "metrics.jsonl")[-1]["step"] == 12


def test_no_memory_left_names_samples_part_and_setting(recipe, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(loop, "accumulate", full)
    with pytest.raises(loop.OutOfMemory, match=r"rows/r\d.*micro_batch"):
        run_recipe(recipe({"steps": 1}), tmp_path, workers=0)
