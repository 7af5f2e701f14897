"""Blocks compiled in place: the same losses, for rows of any length, without compiling again and again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mini_internvl.recipes import PackRecipe
from mini_internvl.train.log import read_log
from mini_internvl.train.run import run_recipe


@pytest.fixture(autouse=True)
def _traced_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traced into graphs that run as they are: what a compiler makes of them is torch's own."""
    torch._dynamo.reset()
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled(self, backend="aot_eager", **how))
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch asks for it itself
def test_compiled_blocks_train_alike(recipe, tmp_path):
    """Also with drop path, whose random numbers stay the same, and where answers are generated in between."""
    changes = {"steps": 4, "drop_path": 0.3, "pack": PackRecipe(tokens=600, tiles=8), "max_length": 500}
    for name, on in (("plain", False), ("compiled", True)):
        run_recipe(recipe(changes, compile=on), tmp_path / name, workers=0)
    plain, compiled = (
        [row["loss"] for row in read_log(tmp_path / name / "metrics.jsonl")] for name in ("plain", "compiled")
    )
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["recompile_limit"]
