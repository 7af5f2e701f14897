"""DocVQA: questions about scanned pages, scored by ANLS; the answers of the test split are with the RRC's server.

The paper prints the test split, so a score on val stands beside it only with a remark. Gold answers come from the
RRC's annotation file (``val_v1.0.json`` or ``val_v1.0_withQT.json``); the latter's question types give a metric each.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mini_internvl.benchmarks import _anls
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample

TITLE = "DocVQA"
SPLITS, UNSCORED, PROTOCOLS = _anls.SPLITS, _anls.UNSCORED, _anls.PROTOCOLS
PRIMARY_METRIC, right = _anls.PRIMARY_METRIC, _anls.right
_NAMES = ("{0}_v1.0.json", "{0}_v1.0_withQT.json")
LAYOUT = _anls.Layout(
    benchmark="docvqa",
    folders=("data/docvqa",),
    questions={split: (f"{split}.jsonl",) for split in SPLITS},
    annotations={
        split: [place.format(split) for name in _NAMES for place in (name, f"{{0}}/{name}")] for split in SPLITS
    },
    image="image",
    images=("spdocvqa_images", "documents"),
    labels={"question_type": ("question_types",)},
    max_tiles=18,
)


items = partial(_anls.read_items, LAYOUT)
score = _anls.make_score(LAYOUT.benchmark)
export = partial(_anls.export_answers, LAYOUT.benchmark)


def _row(name: int, question: str, golds: list[str] | None = None, kinds: list[str] | None = None) -> dict[str, Any]:
    """A row of the annotation file, for the example."""
    row = {"questionId": name, "question": question, "image": f"documents/abcd0001_{name % 2 + 1}.png", "docId": 279}
    return row | ({"answers": golds, "question_types": kinds} if golds else {})


_VAL = [
    _row(49153, "What is the actual value per 1000, during the year 1975?", ["0.28", ".28"], ["figure/diagram"]),
    _row(24580, "Who sent the letter?", ["Orla Textiles"], ["handwritten", "form"]),
    _row(57349, "Which date is given?", ["April 12,1999", "12 April 1999"], ["layout"]),
    _row(57350, "Wie heißt die Straße?", ["Große Straße 5"], ["free_text"]),
    _row(24581, "What is written at the top?", ["北京大学"], ["others"]),
]
_TEST = [_row(57344, "What is the name of the person?"), _row(57345, "What is the total?")]


def _files(split: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = f"docvqa/{split}.jsonl", f"docvqa/{split}/{split}_v1.0.json", f"data/docvqa/{split}/"
    return _anls.example_files(LAYOUT, split, *names, rows)


EXAMPLE = WorkedExample(
    files=_files("val", _VAL) | _files("test", _TEST),
    images={
        f"docvqa/{split}/documents/abcd0001_{page}.png": ExampleImage(width=100, height=140, seed=page)
        for split in SPLITS
        for page in (1, 2)
    },
    good=[".28", "ORLA  textiles", "12 april 1999", " Große Straße 5", "北京大学"],
    bad=["1975", "somebody", "", "the answer is 5", "清华"],
)
