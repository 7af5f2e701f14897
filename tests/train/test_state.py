"""Reading a state of shards: what is damaged is named, and a stop while it is read is a stop."""

from __future__ import annotations

import errno

import pytest
import torch
from torch import distributed
from torch.distributed import checkpoint

from mini_internvl.model.files import CheckpointError
from mini_internvl.train import state
from mini_internvl.train.run_folder import RunFolderError, saving


@pytest.fixture
def shards(tmp_path):
    """A state of one tensor, as several processes write it."""
    with pytest.warns(UserWarning, match="single process"):
        checkpoint.save({"weights.a": torch.ones(64)}, checkpoint_id=tmp_path / "shards", no_dist=True)
    return tmp_path / "shards"


def test_its_tensors_are_read(shards):
    wanted = {"weights.a": torch.zeros(64)}
    state._load_shards(shards, wanted, ())
    assert wanted["weights.a"].sum() == 64


def test_a_stop_while_it_is_read_is_no_damage(shards, monkeypatch):
    def stopped(*given, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "load", stopped)
    with pytest.raises(KeyboardInterrupt):
        state._load_shards(shards, {"weights.a": torch.zeros(64)}, ())


def test_damage_is_told_in_one_line(shards):
    (file,) = shards.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"shards is damaged \(.+\); give another run folder") as found:
        state._load_shards(shards, {"weights.a": torch.zeros(64)}, ())
    assert "\n" not in str(found.value)


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    def full(*given, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RunFolderError, match=r"could not be saved \(No space left"), saving(tmp_path):
            state.write_shards({"weights.a": torch.ones(64)}, tmp_path / "shards")
    finally:
        distributed.destroy_process_group()
