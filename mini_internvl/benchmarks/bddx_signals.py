"""BDD-X control signals: the next speed (m/s) and the next turning angle (degrees), read from the answer's text.

Metrics per signal: RMSE in the signal's unit, and A_tau, the percentage of clips with an absolute error strictly below
tau = 0.1, 0.5, 1 and 5, without wrap-around. How an answer becomes a number is defined nowhere, so it is stated here:
the first decimal number in the text counts, whatever surrounds it. An answer without a readable number is never
dropped: it is wrong in every A_tau and enters the RMSE with the error that WORST gives; the notes count them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mini_internvl.benchmarks._bddx import (
    PROTOCOLS,
    SPLITS,
    answers_by_item,
    clip_items,
    example_clip,
    example_frames,
)
from mini_internvl.benchmarks._example import Example
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._tally import mean_error
from mini_internvl.records import Item, Prediction, Score

__all__ = ["PROTOCOLS", "SPLITS"]

TITLE = "BDD-X control signals"
KINDS = ("speed", "turning_angle")
WORST: Mapping[str, float] = {"speed": 50.0, "turning_angle": 180.0}
"""Error of an unreadable answer, m/s and degrees: larger than any error that a plausible number can make."""
TAUS = (0.1, 0.5, 1.0, 5.0)
CLOSE = 1.0
"""Error (m/s or degrees) below which :func:`right` calls one answer right."""
PRIMARY_METRIC = "speed/A1.0"
LOWER_IS_BETTER = frozenset({"speed/RMSE", "turning_angle/RMSE"})

_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d+(?:\.\d+)?|\.\d+)")


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """Two items a clip of ``clips.jsonl``, ids ``<clip>/speed`` and ``<clip>/turning_angle``; nulls are left out.

    Raises:
        DataError: the folder, a row or a frame is missing or wrong (listed).
    """
    chosen("protocol", protocol, PROTOCOLS)
    return clip_items(root, "bddx_signals", chosen("split", split, SPLITS), KINDS, max_new_tokens=16)


def read_number(text: str) -> float | None:
    """The first decimal number of a text, or None; a sign counts unless it joins words, as in ``Frame-1``."""
    found = _NUMBER.search(text)
    value = float(found.group().replace("\u2212", "-")) if found else math.nan
    return value if math.isfinite(value) else None


def right(item: Item, text: str) -> bool:
    """Whether the answer's number is less than CLOSE from the reference."""
    value = read_number(text)
    return value is not None and abs(value - item.reference["answer"]) < CLOSE


def score(
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Callable[..., str] | None = None,
) -> Score:
    """The paper's ten columns, ``speed/RMSE`` to ``turning_angle/A5.0``; no judge is needed.

    Notes: ``unreadable`` counts the answers without a number, and ``worst_error`` repeats WORST.

    Raises:
        ValueError: there are no items.
    """
    from mini_internvl.metrics.signals import signal_scores

    chosen("protocol", protocol, PROTOCOLS)
    asked = list(items)
    if not asked:
        raise ValueError("bddx_signals: there are no items to score")
    answers = answers_by_item(asked, predictions)
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    counts: dict[str, int] = {}
    unreadable: dict[str, int] = {}
    for kind in KINDS:
        mine = [item for item in asked if item.reference["kind"] == kind]
        if not mine:
            continue
        references = [float(item.reference["answer"]) for item in mine]
        numbers = [read_number(answers[item.id] or "") for item in mine]
        unreadable[kind] = sum(number is None for number in numbers)
        filled = [reference + WORST[kind] if n is None else n for n, reference in zip(numbers, references, strict=True)]
        found = signal_scores(filled, references)
        values[f"{kind}/RMSE"] = found["rmse"]
        values |= {f"{kind}/A{tau}": 100 * found[f"A_{tau}"] for tau in TAUS}
        errors |= {f"{kind}/{name}": error for name, error in _errors(filled, references, found["rmse"]).items()}
        counts |= {metric: len(mine) for metric in values if metric.startswith(f"{kind}/")}
    notes = {"unreadable": unreadable, "worst_error": dict(WORST)}
    return Score(benchmark="bddx_signals", values=values, errors=errors, counts=counts, items=len(asked), notes=notes)


def _errors(guesses: Sequence[float], references: Sequence[float], rmse: float) -> dict[str, float]:
    """Standard errors of the columns of one signal; that of the RMSE by the delta method."""
    gaps = [abs(guess - reference) for guess, reference in zip(guesses, references, strict=True)]
    errors = {"RMSE": mean_error([gap**2 for gap in gaps]) / (2 * rmse) if rmse else 0.0}
    return errors | {f"A{tau}": 100 * mean_error([float(gap < tau) for gap in gaps]) for tau in TAUS}


_CLIPS = [
    example_clip(1, "The car is slowing down.", "because the light is red.", speed=9.31, turning_angle=-0.42),
    example_clip(2, "The car stands.", "because traffic is jammed.", speed=0.0, turning_angle=None),
    example_clip(3, "The car turns.", "because the road bends.", speed=6, turning_angle=17.5),
]
EXAMPLE = Example(
    files={"clips.jsonl": _CLIPS},
    images=example_frames(*_CLIPS),
    good=["9.31", "-0.42 degrees", "0.00 m/s", "about 6.05", "+17.5°"],
    bad=["about 30 m/s", "it turns left", "", "v2", "−17.5"],
)
