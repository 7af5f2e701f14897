"""Weights between two checkpoints of one model: W = (1 - alpha) * base + alpha * trained, tensor by tensor.

Fine-tuned weights and the ones that they started from lie close enough together that the straight line between them
keeps working; along it a domain's gain is traded against what was forgotten (WiSE-FT, arXiv:2109.01903). Sums are made
in float32; at 0 and 1 they are the two ends bit for bit. Beyond 1 the line goes on past the trained weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType

import torch
from torch import Tensor

from mini_internvl.model.config import VLMConfig
from mini_internvl.model.fields import listed
from mini_internvl.model.files import CheckpointError
from mini_internvl.model.layouts.official import untied

State = Mapping[str, Tensor]
LARGEST = 2.0  # alpha; so far beyond the trained weights nothing is known to work


def interpolate(
    base: State, trained: State, config: VLMConfig, layout: ModuleType, *, alpha: float, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """The interpolated tensors under the names of a layout, one at a time, rounded to ``dtype``.

    ``base`` and ``trained`` hold the same tensors under our names (see :func:`check_alike`); memory-mapped ones are
    read as they are needed.
    """
    check_alpha(alpha)
    config = untied(config)  # the output matrix may have trained apart from the table that it began as
    ends = (layout.write(dict(sorted(state.items())), config) for state in (base, trained))
    for (name, first), (_, second) in zip(*ends, strict=True):
        yield name, blend(first, second, alpha).to(dtype)


def blend(base: Tensor, trained: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) * base + alpha * trained in float32; an end itself at 0 and 1."""
    if alpha in (0.0, 1.0):
        return (trained if alpha else base).float()
    return (1 - alpha) * base.float() + alpha * trained.float()


def check_alpha(alpha: float) -> None:
    """ValueError outside of 0 .. :data:`LARGEST`."""
    if not 0 <= alpha <= LARGEST:
        raise ValueError(f"alpha is {alpha:g}; give one from 0 (the base) over 1 (the trained weights) to {LARGEST:g}")


def check_alike(base: State, trained: State, base_name: object, trained_name: object) -> None:
    """CheckpointError naming tensors that only one of the two has, or that have another shape there."""
    if odd := sorted(base.keys() ^ trained.keys()):
        raise CheckpointError(
            f"{base_name} and {trained_name} are not one model: only one of them has {listed(odd)}; "
            "give the checkpoint that the trained one started from"
        )
    for name, tensor in base.items():
        if tensor.shape != trained[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(tensor.shape)} in {base_name}, {tuple(trained[name].shape)} in "
                f"{trained_name}; give the checkpoint that the trained one started from"
            )
