"""InfographicVQA: questions about infographics, scored by ANLS; the test answers are with the RRC's server.

The paper prints the test split, so a score on val stands beside it only with a remark. The annotation file
``infographicsVQA_val_v1.0_withQT.json`` labels each question with its answer types, evidence and operations; a
question counts in the metric of each of its labels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mini_internvl.benchmarks import _anls
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample

TITLE = "InfoVQA"
SPLITS, UNSCORED, PROTOCOLS = _anls.SPLITS, _anls.UNSCORED, _anls.PROTOCOLS
PRIMARY_METRIC, right = _anls.PRIMARY_METRIC, _anls.right
LAYOUT = _anls.Layout(
    benchmark="infovqa",
    folders=("infographicsvqa", "data/infographicsvqa"),
    questions={split: (f"{split}.jsonl", f"infographicsvqa_{split}.jsonl") for split in SPLITS},
    annotations={
        split: [f"infographicsVQA_{split}_v1.0_withQT.json", f"infographicsVQA_{split}_v1.0.json"] for split in SPLITS
    },
    image="image_local_name",
    images=("infographicsvqa_images", "infographicsVQA_images"),
    labels={
        "answer_type": ("answer_type",),
        "evidence": ("evidence",),
        "operation": ("operation/reasoning", "operation", "reasoning"),
    },
    max_tiles=24,
)


items = partial(_anls.read_items, LAYOUT)
score = _anls.make_score(LAYOUT.benchmark)
export = partial(_anls.export_answers, LAYOUT.benchmark)


def _row(name: int, question: str, golds: list[str] | None = None, *labels: list[str]) -> dict[str, Any]:
    """A row of the annotation file, for the example; labels are answer types, evidence and operations."""
    row = {"questionId": name, "question": question, "image_local_name": f"3{name % 2}121.jpeg"}
    return row | (dict(zip(_LABELS, labels, strict=True)) | {"answers": golds} if golds else {})


_LABELS = ("answer_type", "evidence", "operation/reasoning")
_VAL = [
    _row(64588, "Which platform has heavy female audience?", ["Pinterest"], ["image span"], ["figure"], []),
    _row(64589, "How many more?", ["27%", "27"], ["non span"], ["table/list"], ["arithmetic", "counting"]),
    _row(64590, "Which two?", ["TV, radio", "radio, TV"], ["multiple spans"], ["textual"], ["comparison"]),
    _row(64591, "North or south?", ["south"], ["question span", "image span"], ["map"], []),
    _row(64592, "Quel café?", ["Café"], ["image span"], ["photo/pciture/visual_objects", "textual"], []),
]
_TEST = [_row(70001, "Which platform is last?"), _row(70002, "How many are shown?")]


def _files(split: str, annotation: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = f"infographicsvqa/{split}.jsonl", f"infographicsvqa/{annotation}"
    return _anls.example_files(LAYOUT, split, *names, "data/infographicsvqa/infographicsvqa_images/", rows)


EXAMPLE = WorkedExample(
    files=_files("val", "infographicsVQA_val_v1.0_withQT.json", _VAL)
    | _files("test", "infographicsVQA_test_v1.0.json", _TEST),
    images={
        f"infographicsvqa/infographicsvqa_images/3{number}121.jpeg": ExampleImage(width=80, height=200, seed=number)
        for number in (0, 1)
    },
    good=["pinterest", "27", "radio,  TV", "South", "CAFÉ"],
    bad=["Facebook", "73", "a phone", "", "thé"],
)
