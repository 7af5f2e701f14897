"""Whether a model's weights were changed in place, so that nothing that was computed with them holds any longer.

Unusual: fused optimisers leave the version counters of torch as they are, so steps of all optimisers are counted,
whatever they train. Writing through ``.data`` or ``numpy()`` leaves no trace at all.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

_steps = 0


def weights_version(model: nn.Module) -> int:
    """Another number after the weights were changed in place, moved or replaced."""
    _watch_optimisers()
    found = tuple(
        (id(p), p.data_ptr(), p.dtype, p.device, 0 if p.is_inference() else p._version) for p in model.parameters()
    )
    return hash((_steps, found))


@functools.cache
def _watch_optimisers() -> None:
    register_optimizer_step_post_hook(_count_step)


def _count_step(*given: Any) -> None:
    global _steps
    _steps += 1
