"""OCRBench: a point for each item whose answer contains a gold answer.

Texts are compared in lower case with line breaks as spaces; handwritten formulas keep their case and lose all spaces
and line breaks. Unusual: the rule is generous ("a" is found in "Answer: b", an empty gold answer in anything) and
strict at once ("1200" is not found in "$1,200").
Which items are formulas: the official script goes by the data set HME100k, VLMEvalKit by the category; in the
real data these are the same items.
Source: MultimodalOCR ``OCRBench/example.py``; VLMEvalKit ``image_vqa.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
"""Categories that are summed as "Text Recognition"."""
FORMULAS = "Handwritten Mathematical Expression Recognition"
CATEGORIES = (
    *RECOGNITION,
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
    FORMULAS,
)
FORMULA_SET = "HME100k"  # the data set of the formulas
TOTAL = 1000  # items of the benchmark, and so its points


def contains_gold(answer: str, golds: str | Sequence[str], *, formula: bool) -> bool:
    """Whether a gold answer is a part of the answer; ``formula``: compared as handwritten formulas are."""
    plain = _formula if formula else _text
    said = plain(answer)
    return any(plain(gold) in said for gold in ([golds] if isinstance(golds, str) else golds))


def _text(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
