"""RSVQA: exact words for most questions, ranges for numbers.

Only case is ignored: a space or a full stop makes a wrong answer. ``count`` and ``area`` compare ranges (0, 1 to 100,
101 to 1000, above), and are left out of the paper's average, which is taken over items, not over types.
Unusual: an area's gold loses the characters "m" and "2" from its right end, so "12m2" becomes 1 and "222m2" becomes
nothing and is always wrong; a null response to a number question counts as 0.
Source: InternVL ``rs_vqa/score.py``.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from typing import Any

NUMBERS = ("count", "area")  # types of question that the average leaves out
RANGES = (0, 100, 1000)  # last number of each range; what is larger shares one, what is negative has none


def rsvqa_right(kind: str, response: str | None, gold: str) -> bool:
    """Whether a response to a question of this type counts."""
    if kind not in NUMBERS:
        return isinstance(response, str) and response != "" and response.lower() == gold.lower()
    try:
        answered = 0 if response is None else int(response)
        wanted = int(gold.rstrip("m2") if kind == "area" else gold)
    except ValueError:
        return False
    return min(answered, wanted) >= 0 and bisect.bisect_left(RANGES, answered) == bisect.bisect_left(RANGES, wanted)


def rsvqa_scores(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The official report of rows with ``question_type``, ``response`` and ``gt_answer``.

    Returns:
        ``type_scores`` and ``type_counts`` by type, ``total_score``, and ``total_score_useful``, which leaves numbers
        out and is the paper's average; scores are shares, rounded to 4 places, and 0 where there are no items.
    """
    results: dict[str, list[bool]] = {}
    for row in rows:
        kind = row["question_type"]
        results.setdefault(kind, []).append(rsvqa_right(kind, row["response"], row["gt_answer"]))
    useful = [result for kind, group in results.items() if kind not in NUMBERS for result in group]
    return {
        "type_scores": {kind: _share(group) for kind, group in results.items()},
        "type_counts": {kind: len(group) for kind, group in results.items()},
        "total_score": _share([result for group in results.values() for result in group]),
        "total_score_useful": _share(useful),
    }


def _share(results: list[bool]) -> float:
    return round(sum(results) / len(results), 4) if results else 0.0
