"""A linear probe: logistic regression on frozen features, which are standardised by those that it is fitted on.

What is minimised is mean cross entropy + penalty / 2 * |W|^2 (the bias is free), in float64 by L-BFGS, so there is one
solution and no learning rate. The penalty is the one of a few that is best on a part which is held out meanwhile; then
all training features are fitted. scikit-learn's ``LogisticRegression(C=1 / (penalty * n))`` minimises the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""From the strongest on: each fit begins from the one before."""
HELD_OUT = 0.2  # share of the training features on which the penalty is chosen
MOST_STEPS, TOLERANCE = 500, 1e-6  # of L-BFGS; the largest gradient at which it ends
_EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A fitted probe."""

    weight: np.ndarray  # (classes, d), for standardised features
    bias: np.ndarray  # (classes,)
    mean: np.ndarray  # (d,)
    deviation: np.ndarray  # (d,); 1 where a feature never changes
    penalty: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) -> class (n,)."""
        scores = ((features - self.mean) / self.deviation) @ self.weight.T + self.bias
        return np.asarray(scores.argmax(1))


def fit(features: np.ndarray, labels: np.ndarray, penalties: Sequence[float]) -> list[LinearProbe]:
    """A probe for each penalty, which must fall from one to the next.

    Args:
        features: (n, d).
        labels: (n,) numbers of classes from 0.
        penalties: weights of |W|^2 / 2 beside the mean cross entropy.
    """
    import torch  # here: scoring alone needs none

    mean, deviation = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    deviation = np.where(deviation < _EPSILON, 1.0, deviation)
    x = torch.from_numpy((features - mean) / deviation)
    y = torch.from_numpy(labels.astype(np.int64))
    weight = torch.zeros(int(labels.max()) + 1, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(weight), dtype=torch.float64, requires_grad=True)
    probes = []
    for penalty in penalties:
        _minimise(x, y, weight, bias, penalty)
        values = weight.detach().numpy().copy(), bias.detach().numpy().copy()
        probes.append(
            LinearProbe(weight=values[0], bias=values[1], mean=mean, deviation=deviation, penalty=float(penalty))
        )
    return probes


def _minimise(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> None:
    """Move ``weight`` and ``bias`` to the minimum."""
    import torch

    steps = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_STEPS,
        max_eval=2 * MOST_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        steps.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        steps.step(loss)


def choose(
    features: np.ndarray, labels: np.ndarray, *, penalties: Sequence[float] = PENALTIES, seed: int = 0
) -> LinearProbe:
    """The probe of all features with the penalty that is best on :data:`HELD_OUT` of them; of equal ones the strongest.

    ValueError where there are fewer than two classes, or too few pictures to hold some out.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    held, rest = np.split(order, [round(HELD_OUT * len(order))])
    if len(np.unique(labels)) < 2 or not len(held):
        raise ValueError(
            f"a linear probe needs two classes and some pictures of each, not {len(labels)} pictures of "
            f"{len(np.unique(labels))} classes"
        )
    scores = [
        (probe.predict(features[held]) == labels[held]).mean() for probe in fit(features[rest], labels[rest], penalties)
    ]
    best = int(np.argmax(scores))
    return fit(features, labels, penalties[: best + 1])[-1]
