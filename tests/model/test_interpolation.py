"""Weights between two checkpoints: the formula in every layout, exact ends, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mini_internvl.model import layouts
from mini_internvl.model.checkpoint import CheckpointError, load_model, read_config
from mini_internvl.model.interpolation import blend, check_alike, interpolate

GOLDEN = Path(__file__).parent.parent / "golden" / "data" / "models"


@pytest.fixture(scope="module", params=["qwen2", "internlm2", "phi3"])
def ends(request):
    """(config, state, moved state) of a tiny model of each family."""
    model = load_model(GOLDEN / request.param)
    state = dict(model.state_dict())
    generator = torch.Generator().manual_seed(0)
    moved = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    return read_config(GOLDEN / request.param), state, moved


@pytest.mark.parametrize("layout", ["official", "native", "mini"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, 1.5])
def test_every_tensor_is_on_the_line(ends, layout, alpha):
    config, base, trained = ends
    written = interpolate(base, trained, config, layouts.find(layout), alpha=alpha, dtype=torch.float32)
    found = dict(layouts.find(layout).read(written, config))
    assert found.keys() == base.keys()
    for name, value in found.items():
        wanted = (1 - alpha) * base[name].double() + alpha * trained[name].double()
        torch.testing.assert_close(value.double(), wanted, rtol=0, atol=1e-6)
        if alpha in (0, 1):
            assert torch.equal(value, (base, trained)[int(alpha)][name])


def test_an_end_is_exact_even_where_the_other_is_infinite():
    one, infinite = torch.tensor([1.0]), torch.tensor([float("inf")])
    assert blend(one, infinite, 0.0) == 1.0
    assert blend(infinite, one, 1.0) == 1.0


def test_sums_are_made_in_float32():
    base, trained = (torch.tensor([value], dtype=torch.bfloat16) for value in (1.0, 1.0078125))
    assert blend(base, trained, 0.5).item() == 1.00390625  # no bfloat16 lies between


def test_what_does_not_fit_is_refused(ends):
    config, base, trained = ends
    for alpha in (-0.1, 2.1, float("nan")):
        with pytest.raises(ValueError, match=r"alpha is .*; give one from 0"):
            next(interpolate(base, trained, config, layouts.find("mini"), alpha=alpha, dtype=torch.float32))
    name = next(iter(base))
    with pytest.raises(CheckpointError, match=f"only one of them has .*{name}"):
        check_alike(base, {key: value for key, value in trained.items() if key != name}, "base", "trained")
    with pytest.raises(CheckpointError, match=rf"{name} has shape \(.*\) in base, \(7,\) in trained"):
        check_alike(base, {**trained, name: torch.zeros(7)}, "base", "trained")
