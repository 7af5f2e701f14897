"""BDD-X control signals: the next speed (m/s) and the next turning angle (degrees), from the answer's text or a head.

Metrics per signal: RMSE in the signal's unit, and A_tau, the percentage of clips with an absolute error strictly below
tau = 0.1, 0.5, 1 and 5, without wrap-around. How an answer becomes a number is defined nowhere, so it is stated here:
the first decimal number in the text counts, whatever surrounds it. An answer without a readable number is never
dropped: it is wrong in every A_tau and enters the RMSE with the error that WORST gives; the notes count them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mini_internvl.benchmarks import _bddx
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._tally import Asked, Judge, mean_error, with_answers
from mini_internvl.records import Item, Score

TITLE = "BDD-X control signals"
SPLITS, PROTOCOLS = _bddx.SPLITS, _bddx.PROTOCOLS
QUESTION_KINDS = ("speed", "turning_angle")
WORST: Mapping[str, float] = {"speed": 50.0, "turning_angle": 180.0}
"""Error of an unreadable answer, m/s and degrees: larger than any error that a plausible number can make."""
TAUS = (0.1, 0.5, 1.0, 5.0)
RIGHT_WITHIN = 1.0  # error (m/s or degrees) below which :func:`right` calls one answer right
PRIMARY_METRIC = "speed/A1.0"
LOWER_IS_BETTER = frozenset({"speed/RMSE", "turning_angle/RMSE"})

_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d+(?:\.\d+)?|\.\d+)")


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """Ids ``<clip>/speed`` and ``<clip>/turning_angle``; DataError lists what is missing or wrong.

    Nulls are left out, and clips whose signals are all -1, the mark of a missing recording in the original. A model's
    heads of these two names may answer them.
    """
    chosen("protocol", protocol, PROTOCOLS)
    split = chosen("split", split, SPLITS)
    found = _bddx.clip_items(root, "bddx_signals", split, QUESTION_KINDS, max_new_tokens=16)
    return (replace(item, target=item.reference["kind"]) for item in _with_recording(found))


def _with_recording(found: Iterator[Item]) -> Iterator[Item]:
    from mini_internvl.metrics.signals import recorded

    for _, clip in itertools.groupby(found, key=lambda item: item.reference["clip"]):
        asked = list(clip)
        if recorded([[item.reference["answer"] for item in asked]])[0]:
            yield from asked


def read_number(text: str) -> float | None:
    """The first decimal number of a text, or None; a sign counts unless it joins words, as in ``Frame-1``."""
    found = _NUMBER.search(text)
    value = float(found.group().replace("\u2212", "-")) if found else math.nan
    return value if math.isfinite(value) else None


def right(item: Item, text: str) -> bool:
    """Whether the answer's number is less than RIGHT_WITHIN from the reference."""
    value = read_number(text)
    return value is not None and abs(value - item.reference["answer"]) < RIGHT_WITHIN


@with_answers(PROTOCOLS)
def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
    """The paper's ten columns, ``speed/RMSE`` to ``turning_angle/A5.0``; no judge is needed.

    Notes: ``unreadable`` counts the answers without a number, ``worst_error`` repeats WORST. ValueError without items.
    """
    from mini_internvl.metrics.signals import signal_scores

    if not asked:
        raise ValueError("bddx_signals: there are no items to score")
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    counts: dict[str, int] = {}
    unreadable: dict[str, int] = {}
    for kind in QUESTION_KINDS:
        mine = [(item, read_number(text)) for item, text in asked if item.reference["kind"] == kind]
        if not mine:
            continue
        unreadable[kind] = sum(number is None for _, number in mine)
        references = [float(item.reference["answer"]) for item, _ in mine]
        filled = [wanted + WORST[kind] if n is None else n for (_, n), wanted in zip(mine, references, strict=True)]
        found = signal_scores(filled, references)
        columns = {"RMSE": found["rmse"]} | {f"A{tau}": 100 * found[f"A_{tau}"] for tau in TAUS}
        values |= {f"{kind}/{name}": value for name, value in columns.items()}
        errors |= {f"{kind}/{name}": error for name, error in _errors(filled, references, found["rmse"]).items()}
        counts |= {f"{kind}/{name}": len(mine) for name in columns}
    notes = {"unreadable": unreadable, "worst_error": dict(WORST)}
    return Score(benchmark="bddx_signals", values=values, errors=errors, counts=counts, items=len(asked), notes=notes)


def _errors(guesses: Sequence[float], references: Sequence[float], rmse: float) -> dict[str, float]:
    """Standard errors of the columns of one signal; that of the RMSE by the delta method."""
    gaps = [abs(guess - reference) for guess, reference in zip(guesses, references, strict=True)]
    errors = {"RMSE": mean_error([gap**2 for gap in gaps]) / (2 * rmse) if rmse else 0.0}
    return errors | {f"A{tau}": 100 * mean_error([float(gap < tau) for gap in gaps]) for tau in TAUS}


EXAMPLE = _bddx.example(
    _bddx.example_clip(1, "The car is slowing down.", "because the light is red.", speed=9.31, turning_angle=-0.42),
    _bddx.example_clip(2, "The car stands.", "because traffic is jammed.", speed=0.0, turning_angle=None),
    _bddx.example_clip(3, "The car turns.", "because the road bends.", speed=6, turning_angle=17.5),
    good=["9.31", "-0.42 degrees", "0.00 m/s", "about 6.05", "+17.5°"],
    bad=["about 30 m/s", "it turns left", "", "v2", "−17.5"],
)
