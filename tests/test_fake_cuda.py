"""The CUDA device of the tests: it finds what was left on the CPU and what a GPU would be waited for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.fake_cuda import CUDA, FakeCuda, WaitsForGPU, on_cuda


@pytest.fixture
def x():
    with FakeCuda():
        yield torch.arange(12, device="cuda").reshape(3, 4)


@pytest.mark.parametrize(
    ("shape", "take"),
    [
        ((4,), lambda x: x[0]),
        ((4,), lambda x: x[-1]),
        ((3, 3), lambda x: x[:, 1:]),
        ((2, 4), lambda x: x[::2]),
        ((3, 1, 4), lambda x: x[:, None]),
        ((3, 4, 1), lambda x: x[..., None]),
        ((3,), lambda x: x[..., 2]),
        ((2, 4), lambda x: x[torch.arange(2, device=x.device)]),
    ],
)
def test_indexing_gives_the_shape_that_it_has_on_the_cpu(x, shape, take):
    assert take(x).shape == shape == take(torch.zeros(3, 4)).shape
    assert take(x).device == CUDA


def test_tensors_move_and_are_made_there(x):
    real = torch.ones(3, 4)
    for moved in (
        real.to("cuda"),
        real.to(CUDA, non_blocking=True),
        real.cuda(),
        real.pin_memory().to(x),
        real.to(x.device),
    ):
        assert moved.device == CUDA
        assert moved.shape == (3, 4)
    assert (x + real.to(x.device)).dtype == torch.float32
    assert real.sum().item() == 12  # what stays on the CPU keeps its values
    x[:, 0] = 1
    x[0] = real[0].to("cuda", torch.int64)
    assert nn.Linear(4, 2, device="meta").weight.is_meta
    assert on_cuda(nn.Linear(4, 2, device="meta"))(x.float()).shape == (3, 2)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3, 4),
        lambda x: torch.cat([x, torch.ones(1, 4)]),
        lambda x: torch.where(x > 0, x, torch.ones(3, 4)),
        lambda x: nn.functional.embedding(x, torch.ones(12, 2)),
        lambda x: on_cuda(nn.Linear(4, 2, device="meta"))(torch.ones(3, 4)),
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: nn.functional.cross_entropy(x.float(), torch.tensor([0, 1, 2])),
    ],
)
def test_a_tensor_left_on_the_cpu_is_found(x, mix):
    with pytest.raises(RuntimeError, match="same device"):
        mix(x)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: int(x.sum()),
        lambda x: bool((x > 3).any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x[x > 3],
        lambda x: (x > 3).nonzero(),
    ],
)
def test_reading_a_value_is_found(x, read):
    with pytest.raises(WaitsForGPU):
        read(x)
