"""The optimisers: AdamW as the official scripts use it, the same with moments in 8 bits (``bitsandbytes``), or Muon for
the matrices of a model that trains from nothing.

Muon (K. Jordan et al., 2024) replaces the step of a matrix by the nearest orthogonal matrix to its averaged gradient,
so that rare directions move as far as common ones. Here its step has the size that AdamW's would have (factor
0.2 sqrt(longer side), Moonshot AI, 2025), so that one learning rate serves both. Unlike ``torch.optim.Muon`` it
computes in float32, in groups of equal shape, and takes a fused query-key-value matrix as three.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mini_internvl.recipes import StageRecipe
from mini_internvl.train.nf4 import bitsandbytes
from mini_internvl.train.parts import rate_scale

KINDS = ("hidden", "tables", "matrices", "others")  # of parameters, in the order of their groups

ITERATIONS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Coefficients of the odd polynomials that drive all singular values towards 1 (J. You's schedule for five rounds)."""


def make_optimizer(learner: nn.Module, stage: StageRecipe) -> torch.optim.Optimizer:
    """The stage's optimiser over the trainable parameters; matrices decay, biases, norms and scales do not.

    A group's rate is the stage's times its ``lr_scale``, as its part asks.
    """
    trainable = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for name, parameter in trainable.items():
        kind = "matrices" if parameter.ndim >= 2 else "others"
        if stage.optimizer == "adamw8bit" and name.endswith("embed_tokens.weight"):
            kind = "tables"
        if stage.optimizer == "muon" and is_hidden_matrix(name, parameter):
            kind = "hidden"
        scale = rate_scale(name, stage)
        empty = {"params": [], "weight_decay": 0.0 if kind == "others" else stage.weight_decay, "lr_scale": scale}
        group = groups.setdefault((kind, scale), {**empty, "lr": stage.lr * scale})
        group["params"].append(parameter)
        if kind == "tables":
            group["optim_bits"] = 32  # its rows get gradients of very different size
        if kind == "hidden":
            group.setdefault("pieces", []).append(3 if name.endswith("qkv.weight") else 1)
    ordered = [group for key, group in sorted(groups.items(), key=lambda pair: KINDS.index(pair[0][0]))]
    if stage.optimizer == "adamw8bit":
        return adamw8bit(ordered, lr=stage.lr, betas=stage.betas)
    if not any("pieces" in group for group in ordered):
        on_meta = any(parameter.is_meta for parameter in trainable.values())  # torch has no fused step there
        return torch.optim.AdamW(ordered, lr=stage.lr, betas=stage.betas, fused=not on_meta)
    return MuonAdamW(ordered, lr=stage.lr, betas=stage.betas)


def adamw8bit(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW whose moments are held in blocks of 256 with a scale each; a group's ``optim_bits`` may say 32.

    ValueError where bitsandbytes is not installed. Source: Dettmers et al. (arXiv 2110.02861), sections 2 and 3.
    """
    package = bitsandbytes()

    class AdamW8bit(package.optim.AdamW8bit):  # type: ignore[misc, name-defined]  # the package tells no types
        def get_config(self, group_index: int, index: int, group: dict[str, Any]) -> dict[str, Any]:
            found: dict[str, Any] = super().get_config(group_index, index, group)
            return {**found, "optim_bits": group.get("optim_bits", found["optim_bits"])}

    made: torch.optim.Optimizer = AdamW8bit(groups, lr=lr, betas=betas)
    return made


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon suits a parameter: a matrix between hidden states, no table, patch filter or output head."""
    inside = ".layers." in name or ".mlp1." in name
    return inside and parameter.ndim == 2


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, rows, columns) -> the nearest matrices with orthonormal rows or columns, about; same shape, float32."""
    x = matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in ITERATIONS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.AdamW):
    """Muon over the groups of hidden matrices, which have ``pieces``: of each, how many it is taken for. AdamW over
    everything else."""

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], momentum: float = 0.95
    ) -> None:
        groups = [{**group, "momentum": momentum} if "pieces" in group else group for group in groups]
        super().__init__(groups, lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both; the gradients of the hidden matrices are used up."""
        assert closure is None
        overflow = bool(getattr(self, "found_inf", False))  # torch's scaler leaves it to a fused optimiser to pass by
        for group in self.param_groups:
            if "pieces" in group and overflow:
                for parameter in group["params"]:
                    parameter.grad = None
            elif "pieces" in group:
                self._step_muon(group)
        super().step()

    def _step_muon(self, group: dict[str, Any]) -> None:
        shapes: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
        for parameter, pieces in zip(group["params"], group["pieces"], strict=True):
            if parameter.grad is not None:
                averaged = self._averaged(parameter, group["momentum"]).chunk(pieces)
                shapes.setdefault(averaged[0].shape, []).extend((parameter, piece) for piece in averaged)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.grad = None  # AdamW passes by what has none
        steps: dict[nn.Parameter, list[Tensor]] = {}
        for shape, gradients in shapes.items():
            found = orthogonal(torch.stack([piece for _, piece in gradients])) * (0.2 * max(shape) ** 0.5)
            for (parameter, _), piece in zip(gradients, found, strict=True):
                steps.setdefault(parameter, []).append(piece)
        for parameter, found_pieces in steps.items():
            parameter.sub_(torch.cat(found_pieces).to(parameter.dtype), alpha=group["lr"])

    def _averaged(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The gradient looked ahead along its running mean (Nesterov)."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum"]
        mean.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(mean, momentum)
