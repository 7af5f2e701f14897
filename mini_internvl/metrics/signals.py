"""Control signals: root mean squared error and the share of errors below a threshold, in single precision as ADAPT.

Errors are taken in float32, so that 5.1 against 5.0 is just below 0.1, as in the original. There is no wrap-around of
angles. Source: ADAPT ``src/tasks/run_adapt.py`` (``signal_evaluate``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

THRESHOLDS = (0.1, 0.5, 1.0, 5.0, 10.0)


def signal_scores(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """``rmse`` in the signal's unit and ``A_0.1`` .. ``A_10.0`` as fractions.

    Args:
        predictions, references: the same number of values; several steps of a sample count as samples of their own.

    Raises:
        ValueError: no values, or different numbers of them.
    """
    guessed, true = np.asarray(predictions, np.float32).ravel(), np.asarray(references, np.float32).ravel()
    if not len(true) or len(guessed) != len(true):
        raise ValueError(f"{len(guessed)} predictions against {len(true)} references")
    error = np.abs(true - guessed)
    rmse = float(np.sqrt(np.mean(np.square(error), dtype=np.float64)))
    return {"rmse": rmse} | {f"A_{tau}": float(np.mean(error < np.float32(tau))) for tau in THRESHOLDS}


def recorded(references: Sequence[Sequence[float]]) -> np.ndarray:
    """(N,) True for samples whose signals are not all -1, the mark of a missing recording."""
    return ~np.all(np.asarray([np.ravel(sample) for sample in references], np.float32) == -1, axis=1)
