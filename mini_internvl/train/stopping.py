"""When a stage ends early: no measurement has been the best for a while."""

from __future__ import annotations

from collections.abc import Sequence


def stops_early(history: Sequence[float], patience: int) -> bool:
    """Whether the last ``patience`` scores of a stage's measurements are all no higher than one before them.

    ``history`` are the scores in order, higher is better; NaN is none. ``patience`` 0 never stops.
    """
    if not patience or len(history) <= patience:
        return False
    before = [score for score in history[:-patience] if score == score]
    return bool(before) and not any(score > max(before) for score in history[-patience:])
