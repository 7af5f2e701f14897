"""DocVQA: questions about scanned pages, scored by ANLS; the answers of the test split are with the RRC's server.

The paper prints the test split, so a score on val stands beside it only with a remark. Gold answers come from the
RRC's annotation file (``val_v1.0.json`` or ``val_v1.0_withQT.json``); the latter's question types give a metric each.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._anls import (
    LOWER_IS_BETTER,
    PRIMARY_METRIC,
    PROTOCOLS,
    SPLITS,
    UNSCORED,
    Layout,
    export_answers,
    read_items,
    right,
    score_items,
)
from mini_internvl.benchmarks._example import Example, ExampleImage
from mini_internvl.records import Item

__all__ = ["LOWER_IS_BETTER", "PRIMARY_METRIC", "PROTOCOLS", "SPLITS", "UNSCORED", "right"]

TITLE = "DocVQA"
_NAMES = ("{0}_v1.0.json", "{0}_v1.0_withQT.json")
LAYOUT = Layout(
    benchmark="docvqa",
    folders=("docvqa", "data/docvqa"),
    questions={split: (f"{split}.jsonl",) for split in SPLITS},
    annotations={
        split: [place.format(split) for name in _NAMES for place in (name, f"{{0}}/{name}")] for split in SPLITS
    },
    image="image",
    images=("spdocvqa_images", "documents"),
    labels={"question_type": ("question_types",)},
    max_tiles=18,
)


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, with the official id; DataError says what is wrong with the files."""
    return read_items(LAYOUT, root, split, protocol=protocol)


score = partial(score_items, LAYOUT)
export = partial(export_answers, LAYOUT)


def _rows(split: str, *asked: tuple[int, str, list[str], list[str]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the jsonl file and the annotation file, from (id, question, answers, question types)."""
    lines: list[dict[str, Any]] = []
    data: list[dict[str, Any]] = []
    for name, question, golds, kinds in asked:
        page = f"documents/abcd0001_{name % 2 + 1}.png"
        scored = {"question_types": kinds, "answers": golds} if split == "val" else {}
        lines.append({"image": f"data/docvqa/{split}/{page}", "question": question, "question_id": name})
        if split == "val":
            lines[-1]["answer"] = golds[0]
        place = {"image": page, "docId": 279 + name, "ucsf_document_id": "abcd0001", "ucsf_document_page_no": "1"}
        data.append({"questionId": name, "question": question, **place, "data_split": split, **scored})
    return lines, {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": split, "data": data}


_VAL = _rows(
    "val",
    (49153, "What is the actual value per 1000, during the year 1975?", ["0.28", ".28"], ["figure/diagram"]),
    (24580, "Who sent the letter?", ["Orla Textiles"], ["handwritten", "form"]),
    (57349, "Which date is given?", ["April 12,1999", "12 April 1999"], ["layout"]),
    (57350, "Wie heißt die Straße?", ["Große Straße 5"], ["free_text"]),
    (24581, "What is written at the top?", ["北京大学"], ["others"]),
)
_TEST = _rows("test", (57344, "What is the name of the person?", [], []), (57345, "What is the total?", [], []))

EXAMPLE = Example(
    files={
        "docvqa/val.jsonl": _VAL[0],
        "docvqa/val/val_v1.0.json": _VAL[1],
        "docvqa/test.jsonl": _TEST[0],
        "docvqa/test/test_v1.0.json": _TEST[1],
    },
    images={
        f"docvqa/{split}/documents/abcd0001_{page}.png": ExampleImage(width=100, height=140, seed=page)
        for split in SPLITS
        for page in (1, 2)
    },
    good=[".28", "ORLA  textiles", "12 april 1999", " Große Straße 5", "北京大学"],
    bad=["1975", "somebody", "", "the answer is 5", "清华"],
)
