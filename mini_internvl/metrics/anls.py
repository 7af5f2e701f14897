"""ANLS, the score of DocVQA and InfoVQA: how similar an answer is to the nearest gold answer, 0 below one half.

The edit distance is taken over code points of texts without case and with single spaces.
Unusual: it is divided by the length of the **raw** texts in capitals, so that spare spaces and letters whose capitals
are longer (ß, ﬁ) raise the similarity. InfoVQA's report groups questions by the labels of its annotation file; a
question counts in each of its labels.
Source: InternVL ``infographicsvqa_eval.py``, the RRC server's script; VLMEvalKit ``vqa_eval.py`` (the same formula).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mini_internvl.metrics.edit_distance import edit_distance

THRESHOLD = 0.5  # similarities below it count as 0
LABELS: Mapping[str, Mapping[str, str]] = {
    "answer_type": {
        "image span": "Image-Span",
        "question span": "Question-Span",
        "multiple spans": "Multi-Span",
        "non span": "None span",
    },
    "evidence": {
        "table/list": "Table/list",
        "textual": "Text",
        "photo/pciture/visual_objects": "Visual/Layout",
        "figure": "Figure",
        "map": "Map",
    },
    "operation": {"comparison": "Sorting", "arithmetic": "Arithmetic", "counting": "Counting"},
}
"""Groups of InfoVQA's report: label in the annotation file (spelled as there) -> printed name."""


def similarity(answer: str, golds: Iterable[str]) -> float:
    """1 minus the smallest edit distance to a gold answer, as a share of the longer text; 0 without gold answers."""
    plain = _plain(answer)
    ratios = []
    for gold in golds:
        length = max(len(gold.upper()), len(answer.upper()))
        ratios.append(edit_distance(_plain(gold), plain) / length if length else 0.0)
    return 1 - min(ratios, default=1.0)


def anls(answer: str, golds: Iterable[str], *, threshold: float = THRESHOLD) -> float:
    """The similarity, 0 where it is below the threshold."""
    found = similarity(answer, golds)
    return found if found >= threshold else 0.0


def label_names(group: str, labels: Sequence[str]) -> list[str]:
    """Printed names of labels; one that the official script does not know keeps its own."""
    return [LABELS.get(group, {}).get(label, label) for label in labels]


def _plain(text: str) -> str:
    return " ".join(text.strip().lower().split())
