"""Several processes (gloo, on the CPU): the same training as one, stopped and gone on with by any number of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mini_internvl.model.heads import load_heads
from mini_internvl.recipes import LoraRecipe, SourceRecipe, to_dict
from mini_internvl.train.log import read_log
from mini_internvl.train.run import run_recipe


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def near(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Equal but for the order of sums; a checkpoint is in bfloat16."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor.float(), second[name].float(), atol=1e-6, rtol=2**-7)


LORA = LoraRecipe(rank=2, dropout=0.0)


@pytest.mark.parametrize(("kind", "lora"), [("ddp", None), ("fsdp", None), ("ddp", LORA), ("fsdp", LORA)])
def test_two_processes_train_as_one(recipe, together, tmp_path, kind, lora):
    settings = recipe({"steps": 3, "batch_size": 5, "micro_batch": 1}, parallel=kind, lora=lora)
    run_recipe(settings, tmp_path / "one", workers=0)
    codes, told = together(settings, "two")
    assert codes == [0, 0], told
    near(weights(tmp_path / "one/last"), weights(tmp_path / "two/last"))
    near(weights(tmp_path / "one/best"), weights(tmp_path / "two/best"))
    for one, two in zip(*(read_log(tmp_path / name / "metrics.jsonl") for name in ("one", "two")), strict=True):
        assert one.keys() == two.keys()
        assert two.pop("stage") == one.pop("stage")
        assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("train", [{"vision": {}, "llm": {"layers": 1}}, {"vision": {"layers": 1}, "llm": {}}])
def test_shards_of_which_some_blocks_train(recipe, together, tmp_path, train):
    """And one process gets text alone in some steps."""
    settings = recipe({"steps": 4, "batch_size": 2, "micro_batch": 1, "train": train}, parallel="fsdp")
    run_recipe(settings, tmp_path / "one", workers=0)
    codes, told = together(settings, "two")
    assert codes == [0, 0], told
    near(weights(tmp_path / "one/last"), weights(tmp_path / "two/last"))


@pytest.mark.parametrize("train", [("vision", "projector", "llm"), ()])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_heads_as_one(recipe, driven, together, tmp_path, kind, train):
    """Read before the last block, which then does not train: no process waits for its gradient."""
    heads = {"speed": {"kind": "regression"}, "turn": {"kind": "classification", "classes": ["left", "right", "none"]}}
    changes = {"loss": {"heads": {"heads": heads, "layers": 1}}, "steps": 3, "batch_size": 3, "micro_batch": 1}
    changes["train"] = train
    settings = recipe({**changes, "data": (driven,)}, held_out=(driven,), parallel=kind)
    run_recipe(settings, tmp_path / "one", workers=0)
    codes, told = together(settings, "two")
    assert codes == [0, 0], told
    for name in ("best", "last"):
        one, two = (load_heads(tmp_path / run / name, hidden_size=48, layers=2) for run in ("one", "two"))
        assert one.config == two.config
        near(one.state_dict(), two.state_dict())


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_what_two_processes_have_saved_one_goes_on_with(recipe, together, tmp_path, kind):
    """And two with what one has saved; at a constant rate, so that a longer run has the same steps."""

    def of(steps):
        constant = {"warmup_ratio": 0.0, "min_lr_ratio": 1.0, "batch_size": 4, "micro_batch": 1}
        return recipe({"steps": steps} | constant, parallel=kind, save_every=2, held_out=())

    run_recipe(of(6), tmp_path / "one", workers=0)
    codes, told = together(of(2), "both")
    assert codes == [0, 0], told
    assert not list((tmp_path / "both/state").glob("*/*.safetensors"))  # shards
    run_recipe(of(4), tmp_path / "both", workers=0, extend=True)
    codes, told = together(of(6), "both", "--extend")
    assert codes == [0, 0], told
    near(weights(tmp_path / "one/last"), weights(tmp_path / "both/last"))
    losses = [[row["loss"] for row in read_log(tmp_path / name / "metrics.jsonl")] for name in ("one", "both")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_shards_are_saved_after_a_measurement_that_keeps_nothing(recipe, together, tmp_path):
    """Nothing then asks for the whole model, whose root FSDP2 leaves gathered after a forward pass."""
    changes = {"steps": 3, "batch_size": 2, "micro_batch": 1, "lr": 0.5, "warmup_ratio": 0.0, "clip": 100.0}
    settings = recipe(changes, parallel="fsdp", shown_samples=0, eval_every=1, save_every=1)
    codes, told = together(settings, "two")
    assert codes == [0, 0], told
    scores = [row["held_out_loss"] for row in read_log(tmp_path / "two/metrics.jsonl")]
    assert max(scores) > scores[0]


@pytest.mark.slow
def test_a_process_with_text_alone_does_not_hold_up_the_other(recipe, rows, together, tmp_path):
    """200 steps of two samples: one process gets those with images, the other text, in every order."""
    lines = rows.read_text().splitlines()
    (tmp_path / "data").mkdir()
    for image in rows.parent.glob("*.png"):
        (tmp_path / "data" / image.name).write_bytes(image.read_bytes())
    path = tmp_path / "data/rows.jsonl"
    path.write_text("\n".join([lines[0], lines[2]]))
    source = (SourceRecipe(kind="jsonl", path=str(path)),)
    for kind in ("ddp", "fsdp"):
        changes = {"steps": 200, "batch_size": 2, "micro_batch": 1, "data": source}
        codes, told = together(recipe(changes, parallel=kind, stall_seconds=60.0, held_out=(), save_every=200), kind)
        assert codes == [0, 0], told
        assert len(read_log(tmp_path / kind / "metrics.jsonl")) == 200


def test_a_sample_that_hangs_is_named_and_ends_all_processes(recipe, rows, tmp_path):
    """Started by torchrun, as a user would; a pipe that nobody writes to stands for a disk that hangs."""
    (tmp_path / "data").mkdir()
    for image in rows.parent.glob("*.png"):
        (tmp_path / "data" / image.name).write_bytes(image.read_bytes())
    path = tmp_path / "data/rows.jsonl"
    path.write_text(rows.read_text())
    source = (SourceRecipe(kind="jsonl", path=str(path)),)
    changes = {"steps": 50, "batch_size": 4, "micro_batch": 1, "data": source}
    settings = recipe(changes, stall_seconds=6.0, held_out=())
    (tmp_path / "recipe.yaml").write_text(json.dumps(to_dict(settings)))
    code = f"""
import os, sys
from mini_internvl.train import processor
whole = processor.SampleProcessor.__call__
def hangs(self, sample):
    if sample.id == "r3":
        import time; time.sleep(600)
    return whole(self, sample)
processor.SampleProcessor.__call__ = hangs
sys.argv = ["minivl", "train", "{tmp_path}/recipe.yaml", "--output", "{tmp_path}/run", "--workers", "1"]
from mini_internvl.cli import main
main()
"""
    (tmp_path / "train.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    settings = {"capture_output": True, "text": True, "timeout": 120, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    done = subprocess.run([*command, tmp_path / "train.py"], **settings)
    assert done.returncode == 1
    told = done.stderr
    assert re.search(
        r"process [01] of 2 has made no progress for \d+ s: one, step \d+: waiting for sample \d+", told
    ), told
    assert "rows.jsonl" in told
