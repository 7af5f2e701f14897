"""What device and type names mean on computers with and without GPUs."""

from __future__ import annotations

import pytest
import torch

from mini_internvl.engine import load
from mini_internvl.engine.device import fast_bfloat16, resolve_device, resolve_dtype


@pytest.fixture
def computer(monkeypatch):
    """``computer(gpus=2, mps=False)`` sets what torch finds."""

    def build(gpus=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return build


@pytest.mark.parametrize(("gpus", "mps", "found"), [(2, False, "cuda"), (0, True, "mps"), (0, False, "cpu")])
def test_auto_takes_a_gpu_where_there_is_one(computer, gpus, mps, found):
    computer(gpus, mps)
    assert resolve_device("auto") == torch.device(found)
    assert resolve_device("cpu") == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused(computer):
    computer(gpus=2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    for name, message in (
        ("cuda:2", "torch sees 2 CUDA devices; use auto or cpu"),
        ("mps", "this build of torch lacks; use auto or cpu"),
        ("gpu", "known: auto, cpu, mps, cuda, cuda:1"),
        ("cuda:x", "known: auto, cpu, mps, cuda, cuda:1"),
    ):
        with pytest.raises(ValueError, match=f'device is "{name}".*{message}'):
            resolve_device(name)
    computer()
    with pytest.raises(ValueError, match="torch sees 0 CUDA devices"):
        load(device="cuda")


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_is_taken_where_the_processor_computes_with_it(monkeypatch, tmp_path, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able, "avx2": True})
    cpu, file = torch.device("cpu"), tmp_path / "model.safetensors"
    assert fast_bfloat16(cpu) == able
    file.touch()
    assert resolve_dtype("auto", cpu, tmp_path) == "float32"  # a small model
    with file.open("wb") as opened:
        opened.truncate(300_000_000)
    assert resolve_dtype("auto", cpu, tmp_path) == ("bfloat16" if able else "float32")
    assert resolve_dtype("float16", cpu, tmp_path) == "float16"
