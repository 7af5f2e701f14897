"""Short answers: ChartQA's relaxed accuracy, and exact match.

Numbers may be 5% off, texts differ in case only. A number is what Python's ``float`` reads, so "1_000", "1e3" and
full-width digits are numbers, "1,200" and "$5" are not; "12%" is 0.12. Years get the tolerance too.
Unusual: InternVL's script hands the model's answer over as the target, so the tolerance is relative to the **answer**,
and an answer of 0 is compared as text; published numbers of InternVL depend on it. VLMEvalKit did the same in October
2024 and compares with the gold answer now; it also takes a gold answer that reads as a Python list for several,
and stops in October 2024 where that list holds a number.
Source: InternVL ``evaluate_vqa.py``; VLMEvalKit ``vqa_eval.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mini_internvl.metrics.list_text import read_list

TOLERANCE = 0.05  # largest error of a number, as a share of the target; it still counts


def relaxed_right(answer: str, golds: str | Sequence[str], *, relative_to: Literal["answer", "gold"]) -> bool:
    """Whether an answer is close enough to one of the gold answers; the answer is stripped, the gold ones are not.

    The tolerance is a share of ``relative_to``: ``"answer"`` as in InternVL's script, or ``"gold"``.
    """
    answer = answer.strip()
    every = [golds] if isinstance(golds, str) else golds
    if relative_to == "answer":
        return any(_close(gold, target=answer) for gold in every)
    return any(_close(answer, target=gold) for gold in every)


def exact_right(answer: str, golds: str | Sequence[str]) -> bool:
    """Whether an answer equals one of the gold answers but for case and surrounding white space."""
    every = [golds] if isinstance(golds, str) else golds
    return any(answer.strip().lower() == gold.strip().lower() for gold in every)


def vlmevalkit_golds(golds: str | Sequence[str], *, texts_only: bool = False) -> list[str]:
    """The gold answers that VLMEvalKit sees: those of a list, also where it is only spelled as a text.

    ``texts_only``: none for a list that holds anything but texts, where the version of October 2024 stops.
    """
    listed = read_list(golds) if isinstance(golds, str) else list(golds)
    if listed is None:
        return [str(golds)]
    if texts_only and not all(isinstance(gold, str) for gold in listed):
        return []
    return [str(gold) for gold in listed]


def _close(text: str, *, target: str) -> bool:
    value, wanted = _number(text), _number(target)
    if value is None or not wanted:  # a target of 0 is compared as text
        return text.lower() == target.lower()
    return abs(value - wanted) / abs(wanted) <= TOLERANCE


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None
