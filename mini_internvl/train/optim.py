"""The optimisers: AdamW as the official scripts use it, or Muon for the matrices of a model that trains from nothing.

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

ITERATIONS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Coefficients of the odd polynomials that drive all singular values towards 1 (J. You's schedule for five rounds)."""


def make_optimizer(learner: nn.Module, stage: StageRecipe) -> torch.optim.Optimizer:
    """The stage's optimiser over the trainable parameters; matrices decay, biases, norms and scales do not."""
    trainable = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    hidden = {n: p for n, p in trainable.items() if stage.optimizer == "muon" and is_hidden_matrix(n, p)}
    matrices = [p for n, p in trainable.items() if p.ndim >= 2 and n not in hidden]
    others = [p for p in trainable.values() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": stage.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not hidden:
        on_meta = any(parameter.is_meta for parameter in trainable.values())  # torch has no fused step there
        return torch.optim.AdamW(groups, lr=stage.lr, betas=stage.betas, fused=not on_meta)
    return MuonAdamW(hidden, groups, lr=stage.lr, betas=stage.betas, weight_decay=stage.weight_decay)


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
    """Muon over the hidden matrices, the first group, and AdamW over everything else."""

    def __init__(
        self, hidden: dict[str, nn.Parameter], others: list[dict[str, Any]], *,
        lr: float, betas: tuple[float, float], weight_decay: float, momentum: float = 0.95,
    ) -> None:  # fmt: skip
        pieces = [3 if name.endswith("qkv.weight") else 1 for name in hidden]
        muon = {"params": list(hidden.values()), "pieces": pieces, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([muon, *others], lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both; the gradients of the hidden matrices are used up."""
        assert closure is None
        self._step_muon(self.param_groups[0])
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
