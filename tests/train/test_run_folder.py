"""The run folder: who may write into it, what may change between stop and go, and what a kill or a full disk leaves."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import re
import resource
import shutil
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mini_internvl import recipes
from mini_internvl.inputs.tokenizer_files import FILES
from mini_internvl.model.checkpoint import load_model, save_model
from mini_internvl.recipes import LoraRecipe, PackRecipe, Recipe, SourceRecipe
from mini_internvl.records import Interrupted
from mini_internvl.train.data import DataError
from mini_internvl.train.log import read_log
from mini_internvl.train.parts import learning_rate
from mini_internvl.train.run import run_recipe
from mini_internvl.train.run_folder import RunFolderError, check_folder, own
from mini_internvl.train.state import newest


@pytest.fixture
def own_rows(rows, tmp_path):
    """A copy of the rows that a test may spoil."""
    folder = tmp_path / "data"
    shutil.copytree(rows.parent, folder)
    return folder / rows.name


def stopped(settings, folder):
    """Run one step."""
    with pytest.raises(Interrupted):
        run_recipe(settings, folder, workers=0, should_stop=lambda: True)


def hold(folder, owned):
    with own(folder):
        owned.set()
        time.sleep(60)


def test_a_second_process_is_refused_and_the_first_is_named(recipe, tmp_path):
    fork = multiprocessing.get_context("fork")
    owned = fork.Event()
    first = fork.Process(target=hold, args=(tmp_path / "run", owned))
    first.start()
    assert owned.wait(60)
    with pytest.raises(RunFolderError, match=rf"run is in use by process {first.pid} on \S+ since .*give another"):
        run_recipe(recipe({"steps": 1}), tmp_path / "run", workers=0)
    first.kill()
    first.join()
    run_recipe(recipe({"steps": 1}), tmp_path / "run", workers=0)  # the lock ended with its process
    with own(tmp_path / "run"), pytest.raises(RunFolderError, match="is in use by process"), own(tmp_path / "run"):
        pass


def test_a_worker_does_not_hold_the_lock_of_a_run_that_was_killed(tmp_path):
    fork = multiprocessing.get_context("fork")
    with own(tmp_path):
        worker = fork.Process(target=time.sleep, args=(60,))
        worker.start()
    with own(tmp_path):
        worker.kill()
    worker.join()


def test_a_folder_that_cannot_be_locked_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunFolderError, match=r"file/run cannot be locked .*give another folder"),
        own(tmp_path / "file" / "run"),
    ):
        pass

    def no_locks(lock, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(RunFolderError, match=r"run cannot be locked for a run \(No locks available\)"),
        own(tmp_path / "run"),
    ):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.setattr(os, "open", lambda *given: no_locks(*given[:2]))
    with pytest.raises(RunFolderError, match="cannot be locked"), own(tmp_path / "run"):
        pass


def test_a_start_that_fails_claims_nothing(recipe, own_rows, tmp_path):
    """The corrected command runs in the same folder."""
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="no/such"):
        run_recipe(recipe({"steps": 1}, model="no/such"), run, workers=0)
    assert not run.exists()
    own_rows.write_text("{")
    broken = (SourceRecipe(kind="jsonl", path=str(own_rows)),)
    with pytest.raises(ValueError, match=r"rows\.jsonl:1"):
        run_recipe(recipe({"steps": 1, "data": broken}), run, workers=0)
    assert not run.exists()
    run_recipe(recipe({"steps": 1}), run, workers=0)
    assert recipes.from_dict(Recipe, json.loads((run / "recipe.json").read_text())) == recipe({"steps": 1})


@pytest.mark.parametrize(
    ("changes", "settings", "told"),
    [
        ({"lr": 2e-3}, {}, r"stages\.0\.lr \(0\.001 then, 0\.002 now\); undo the change"),
        ({"loss": {"answers": {"reduction": "square"}}}, {}, r"stages\.0\.loss"),
        ({}, {"seed": 1}, r"seed \(0 then, 1 now\)"),
        ({"steps": 3}, {}, r"stages\.0\.steps \(4 then, 3 now\)"),
        ({"name": "other"}, {}, r"stages\.0\.name"),
        ({}, {"lora": LoraRecipe()}, "lora"),
    ],
)
def test_a_recipe_with_another_result_is_refused(recipe, tmp_path, changes, settings, told):
    stopped(recipe({"steps": 4}), tmp_path)
    before = (tmp_path / "recipe.json").read_bytes()
    other = recipe({"steps": 4} | changes, **settings)
    for ask in (lambda: run_recipe(other, tmp_path, workers=0), lambda: check_folder(other, tmp_path)):
        with pytest.raises(RunFolderError, match=f"holds a run of another recipe: {told}"):
            ask()
    assert (tmp_path / "recipe.json").read_bytes() == before


def test_what_does_not_change_the_result_may_change(recipe, rows, tmp_path):
    """Also a recipe.json of an earlier version, which lacks a field that has its default now."""
    settings = recipe({"steps": 3})
    stopped(settings, tmp_path / "run")
    older = json.loads((tmp_path / "run/recipe.json").read_text())
    del older["device"], older["stages"][0]["optimizer"], older["stages"][0]["data"][0]["seed"]
    (tmp_path / "run/recipe.json").write_text(json.dumps(older))
    shutil.copytree(rows.parent, tmp_path / "moved")
    moved = (SourceRecipe(kind="jsonl", path=str(tmp_path / "moved" / rows.name)),)
    changes = {"save_every": 1, "eval_every": 2, "name": "x", "device": "cpu"}
    run_recipe(recipe({"steps": 3, "data": moved}, **changes), tmp_path / "run", workers=1)
    run_recipe(settings, tmp_path / "whole", workers=0)
    first, second = (load_file(tmp_path / name / "last/model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "run/recipe.json").read_text())["save_every"] == 1


def test_a_finished_run_is_extended_by_more_steps(recipe, tmp_path):
    """From where it is, the rate follows the schedule of the new length."""
    run_recipe(recipe({"steps": 3}), tmp_path, workers=0)
    with pytest.raises(RunFolderError, match=r"stages\.0\.steps \(3 then, 8 now\); go on with --extend, or"):
        run_recipe(recipe({"steps": 8}), tmp_path, workers=0)
    with pytest.raises(RunFolderError, match=r"stages\.0\.steps \(3 then, 2 now\); undo the change, or"):
        run_recipe(recipe({"steps": 2}), tmp_path, workers=0, extend=True)
    run_recipe(recipe({"steps": 8}), tmp_path, workers=0, extend=True)
    rows = read_log(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    long = recipe({"steps": 8}).stages[0]
    assert [row["lr"] for row in rows[3:]] == [learning_rate(long, step) for step in range(3, 8)]
    assert newest(tmp_path / "state").counters["step"] == 8
    assert json.loads((tmp_path / "recipe.json").read_text())["stages"][0]["steps"] == 8


def test_changed_data_is_refused(recipe, own_rows, tmp_path):
    source = (SourceRecipe(kind="jsonl", path=str(own_rows)),)
    for settings in (recipe({"steps": 3, "data": source}), recipe({"steps": 3}, held_out=source)):
        whole, run = own_rows.read_text(), tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        stopped(settings, run)
        own_rows.write_text("\n".join(whole.splitlines()[:3]))
        with pytest.raises(RunFolderError, match=r"rows\.jsonl is not the data that the run in .* began with; put it"):
            run_recipe(settings, run, workers=0)
        own_rows.write_text(whole)
        run_recipe(settings, run, workers=0)


def test_a_finished_run_is_compared_with_its_data(recipe, own_rows, tmp_path, caplog):
    """What was not trained on them is not handed out as if it were; data that are gone are told of."""
    settings = recipe({"steps": 2, "data": (SourceRecipe(kind="jsonl", path=str(own_rows)),)})
    best = run_recipe(settings, tmp_path / "run", workers=0)
    whole, trained = own_rows.read_text(), (best / "model.safetensors").read_bytes()
    own_rows.write_text("\n".join(whole.splitlines()[:3]))
    with pytest.raises(RunFolderError, match=r"rows\.jsonl is not the data that the run in .* began with; put it"):
        run_recipe(settings, tmp_path / "run", workers=0)
    with pytest.raises(
        RunFolderError, match="has finished its 2 steps, so nothing would be learnt from the data as it"
    ):
        run_recipe(settings, tmp_path / "run", workers=0, extend=True)
    own_rows.unlink()
    assert run_recipe(settings, tmp_path / "run", workers=0) == best
    assert "is finished; its data cannot be compared" in caplog.text
    own_rows.write_text(whole)
    assert run_recipe(settings, tmp_path / "run", workers=0, extend=True) == best
    assert (best / "model.safetensors").read_bytes() == trained


@pytest.mark.parametrize("pack", [None, PackRecipe(tokens=600, tiles=8)])
def test_a_run_is_extended_by_more_rows_and_more_sources(recipe, own_rows, tmp_path, caplog, pack):
    """What it has learnt and logged stays; the remaining steps draw from all rows, also those of a new source."""
    source = SourceRecipe(kind="jsonl", path=str(own_rows))
    changes = {"data": (source,), "pack": pack, "max_length": 500}
    run_recipe(recipe({**changes, "steps": 3}), tmp_path / "run", workers=0)
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    rows = [json.loads(line) for line in own_rows.read_text().splitlines()]
    rows += [{**row, "id": f"new{row['id']}"} for row in rows] + [{"id": "bad", "conversations": []}]
    own_rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(own_rows, own_rows.with_name("other.jsonl"))
    longer = recipe({**changes, "steps": 6}, max_faults=0.2)
    with pytest.raises(RunFolderError, match="go on with --extend"):
        run_recipe(longer, tmp_path / "run", workers=0)
    run_recipe(longer, tmp_path / "run", workers=0, extend=True)
    assert "the remaining steps of one are drawn from the data as it is now" in caplog.text
    assert (tmp_path / "run/quarantine.jsonl").read_text().count("line 11") == 1
    both = (source, SourceRecipe(kind="jsonl", path=str(own_rows.with_name("other.jsonl"))))
    run_recipe(recipe({**changes, "steps": 9, "data": both}, max_faults=0.2), tmp_path / "run", workers=0, extend=True)
    whole = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert whole.startswith(before)
    assert [row["step"] for row in read_log(tmp_path / "run/metrics.jsonl")] == list(range(1, 10))


@pytest.mark.parametrize("lora", [None, LoraRecipe(rank=2)])
def test_a_replaced_base_is_refused(recipe, checkpoint, tmp_path, lora):
    base = tmp_path / "base"
    shutil.copytree(checkpoint, base)
    settings = recipe({"steps": 3}, model=str(base), lora=lora)
    stopped(settings, tmp_path / "run")
    model = load_model(base)
    with torch.no_grad():
        model.mlp1[1].bias.add_(1)
    save_model(model, base, extra_files=[path for path in checkpoint.iterdir() if path.name in FILES])
    with pytest.raises(RunFolderError, match=r"the weights that the run in .* began from were replaced"):
        run_recipe(settings, tmp_path / "run", workers=0)


def test_other_threads_are_warned_of(recipe, tmp_path, caplog):
    stopped(recipe({"steps": 3}), tmp_path)
    assert newest(tmp_path / "state").counters["facts"]["threads"] == 1
    torch.set_num_threads(2)
    run_recipe(recipe({"steps": 3}), tmp_path, workers=0)
    assert "this run began with threads 1 and goes on with 2: results differ by rounding" in caplog.text


def finish(settings, folder):
    run_recipe(settings, folder, workers=0)
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("spoil", ["no state", "no counters", "empty", "other kind", "no tensors"])
def test_a_run_is_never_begun_anew_in_silence(recipe, tmp_path, spoil):
    settings = recipe({"steps": 2})
    finish(settings, tmp_path)
    file = newest(tmp_path / "state").folder / "state.json"
    shutil.rmtree(tmp_path / "state/00000000")
    if spoil == "no state":
        shutil.rmtree(tmp_path / "state")
    elif spoil == "no counters":
        file.unlink()
    elif spoil == "no tensors":
        file.with_name("state.safetensors").unlink()
    else:
        file.write_text("" if spoil == "empty" else '{"stage": 3, "step": "x"}')
    kept = {path: path.read_bytes() for path in (tmp_path / "best").iterdir()}
    with pytest.raises(ValueError, match=r"without its state/; put it back|state/0+2 is damaged: state.json or"):
        run_recipe(settings, tmp_path, workers=0)
    assert {path: path.read_bytes() for path in (tmp_path / "best").iterdir()} == kept


def test_what_killed_saves_leave_is_cleared_at_the_next_start(recipe, tmp_path):
    """Also of another host name: a container has a new one each time."""
    settings = recipe({"steps": 3}, save_every=1)
    stopped(settings, tmp_path)
    for name in ("state/.00000002.oldhost-1-abc", ".best.oldhost-7-x", ".last.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "big").write_text("x")
    run_recipe(settings, tmp_path, workers=0)
    assert [row["step"] for row in read_log(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    names = {path.name for path in tmp_path.iterdir()} - {"tensorboard"}  # which is there with its package
    expected = ".lock", "best", "last", "metrics.jsonl", "recipe.json", "samples", "speed.jsonl", "state"
    assert sorted(names) == [*expected]


def test_equal_runs_give_equal_bytes(recipe, tmp_path):
    settings = recipe({"steps": 2})
    first, second = finish(settings, tmp_path / "a"), finish(settings, tmp_path / "b")
    for path, content in first.items():
        if path.name != "speed.jsonl" and "tensorboard" not in path.parts:  # these hold the time
            assert second[tmp_path / "b" / path.relative_to(tmp_path / "a")] == content, path
    counters = (newest(tmp_path / "a/state").folder / "state.json").read_text()
    assert json.loads(counters, parse_constant=lambda name: pytest.fail(name))["best"] is not None


def test_a_full_disk_is_one_line_and_the_old_state_stays(recipe, tmp_path):
    """A limit on the size of files stands for the disk."""
    settings = recipe({"steps": 4}, save_every=1, held_out=())
    stopped(settings, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(RunFolderError) as caught:
            run_recipe(settings, tmp_path, workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = r"state could not be saved \(File too large\); what was saved before is intact: make room, and the same"
    assert re.search(told, str(caught.value))
    assert "\n" not in str(caught.value)
    assert newest(tmp_path / "state").counters["step"] == 1
    run_recipe(settings, tmp_path, workers=0)


@pytest.fixture
def full_disk():
    """``with full_disk(1000):`` no file may grow beyond so many bytes, as on a disk that fills up."""

    @contextlib.contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.mark.parametrize("size", [0, 300, 1_500, 5_000, 60_000, 150_000])
def test_a_disk_that_fills_up_at_any_file_costs_nothing_that_was_saved(recipe, tmp_path, full_disk, size):
    """The limit hits the log, the recipe, the state's texts or its tensors; the same command then goes on."""
    settings = recipe({"steps": 4}, save_every=1, held_out=())
    run_recipe(settings, tmp_path / "whole", workers=0)
    stopped(settings, tmp_path / "run")
    kept = (tmp_path / "run/recipe.json").read_bytes()
    with full_disk(size), pytest.raises((RunFolderError, OSError)) as caught:
        run_recipe(settings, tmp_path / "run", workers=0)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run/recipe.json").read_bytes() == kept
    assert newest(tmp_path / "run/state").counters["step"] >= 1
    run_recipe(settings, tmp_path / "run", workers=0)
    assert [row["step"] for row in read_log(tmp_path / "run/metrics.jsonl")] == [1, 2, 3, 4]
    wanted, found = (load_file(tmp_path / f"{name}/best/model.safetensors") for name in ("whole", "run"))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("size", [0, 300])
def test_a_start_on_a_full_disk_claims_nothing(recipe, tmp_path, full_disk, size):
    settings = recipe({"steps": 1}, held_out=())
    with full_disk(size), pytest.raises((RunFolderError, OSError)):
        run_recipe(settings, tmp_path / "run", workers=0)
    run_recipe(settings, tmp_path / "run", workers=0)
    assert [row["step"] for row in read_log(tmp_path / "run/metrics.jsonl")] == [1]


def test_a_data_error_saves_the_state_first(recipe, own_rows, tmp_path):
    """So that the run goes on from there once the data is mended."""
    image = (own_rows.parent / "a.png").read_bytes()
    (own_rows.parent / "a.png").write_bytes(image[:200] + image[-12:])  # whole by its end: only decoding shows it
    source = (SourceRecipe(kind="jsonl", path=str(own_rows)),)
    changes = {"steps": 6, "batch_size": 1, "micro_batch": 1, "data": source}
    settings = recipe(changes, save_every=100, seed=2, max_faults=0.0)
    for workers in (0, 1):
        run = tmp_path / str(workers)
        with pytest.raises(
            DataError, match=r"rows\.jsonl:\d, sample rows/r\d: .*a\.png.* \(step (\d) of one; the state"
        ) as e:
            run_recipe(settings, run, workers=workers)
        step = int(str(e.value).partition("(step ")[2][0])
        assert step > 1, "choose a seed whose first sample is whole"
        assert newest(run / "state").counters["step"] == step - 1
    (own_rows.parent / "a.png").write_bytes(image)
    run_recipe(settings, run, workers=0)
    assert [row["step"] for row in read_log(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_data_error_at_the_first_step_of_a_stage_keeps_what_the_stage_before_has_trained(
    recipe, stage, own_rows, tmp_path
):
    source = (SourceRecipe(kind="jsonl", path=str(own_rows)),)
    settings = recipe(stages=(stage(steps=2), stage(name="two", steps=2, data=source)), max_faults=0.0)
    run_recipe(settings, tmp_path / "whole", workers=0)
    images = {name: (own_rows.parent / name).read_bytes() for name in ("a.png", "b.png")}
    for name in images:
        (own_rows.parent / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"\(step 1 of two; the state before it is saved\)"):
        run_recipe(settings, tmp_path / "run", workers=0)
    assert newest(tmp_path / "run/state").counters["stage"] == "one"
    for name, content in images.items():
        (own_rows.parent / name).write_bytes(content)
    run_recipe(settings, tmp_path / "run", workers=0)
    first, second = (load_file(tmp_path / name / "last/model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_what_trains_is_saved(recipe, stage, tmp_path):
    """Of all stages so far, so that what comes later finds what went before."""
    settings = recipe(stages=(stage(steps=2, train=("projector",)), stage(name="two", steps=2, train=("vision",))))
    parts, sizes = [], []

    def look(progress):
        state = newest(tmp_path / "state").folder / "state.safetensors"
        if state.exists():
            names = {name.split(".")[1] for name in load_file(state) if name.startswith("model.")}
            parts.append((progress.stage, names))
            sizes.append(state.stat().st_size)

    run_recipe(replace(settings, save_every=1), tmp_path, workers=0, on_progress=look)
    assert [names for name, names in parts if name == "one"] == [{"mlp1"}]
    assert parts[-1] == ("two", {"mlp1", "vision_model"})
    assert sizes[0] < 200_000
