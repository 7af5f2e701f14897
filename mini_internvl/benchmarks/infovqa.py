"""InfographicVQA: questions about infographics, scored by ANLS; the test answers are with the RRC's server.

The paper prints the test split, so a score on val stands beside it only with a remark. The annotation file
``infographicsVQA_val_v1.0_withQT.json`` labels each question with its answer types, evidence and operations; a
question counts in the metric of each of its labels.
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

TITLE = "InfoVQA"
LAYOUT = Layout(
    benchmark="infovqa",
    folders=("infovqa", "infographicsvqa", "data/infographicsvqa"),
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


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, with the official id; DataError says what is wrong with the files."""
    return read_items(LAYOUT, root, split, protocol=protocol)


score = partial(score_items, LAYOUT)
export = partial(export_answers, LAYOUT)


_Labels = tuple[list[str], list[str], list[str]]


def _rows(split: str, *asked: tuple[int, str, list[str], _Labels]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the jsonl file and the annotation file, from (id, question, answers, labels)."""
    lines: list[dict[str, Any]] = []
    data: list[dict[str, Any]] = []
    for name, question, golds, labels in asked:
        image = f"3{name % 2}121.jpeg"
        line = {"image": f"data/infographicsvqa/infographicsvqa_images/{image}", "question": question}
        lines.append({**line, "question_id": name})
        row = {"questionId": name, "question": question, "image_local_name": image}
        row |= {"image_url": f"https://example.org/{image}", "ocr_output_file": f"{image}.json"}
        row |= {"data_split": split}
        if split == "val":
            lines[-1]["answer"] = golds[0]
            row |= {"answers": golds, "answer_type": labels[0], "evidence": labels[1], "operation/reasoning": labels[2]}
        data.append(row)
    return lines, {"dataset_name": "infographicVQA", "dataset_version": "1.0", "dataset_split": split, "data": data}


_NONE: _Labels = ([], [], [])
_VAL = _rows(
    "val",
    (64588, "Which platform has heavy female audience?", ["Pinterest"], (["image span"], ["figure"], [])),
    (64589, "How many more?", ["27%", "27"], (["non span"], ["table/list"], ["arithmetic", "counting"])),
    (64590, "Which two are largest?", ["TV, radio", "radio, TV"], (["multiple spans"], ["textual"], ["comparison"])),
    (64591, "North or south?", ["south"], (["question span", "image span"], ["map"], [])),
    (64592, "Quel café?", ["Café"], (["image span"], ["photo/pciture/visual_objects", "textual"], [])),
)
_TEST = _rows("test", (70001, "Which platform is last?", [], _NONE), (70002, "How many are shown?", [], _NONE))

EXAMPLE = Example(
    files={
        "infographicsvqa/val.jsonl": _VAL[0],
        "infographicsvqa/infographicsVQA_val_v1.0_withQT.json": _VAL[1],
        "infographicsvqa/test.jsonl": _TEST[0],
        "infographicsvqa/infographicsVQA_test_v1.0.json": _TEST[1],
    },
    images={
        f"infographicsvqa/infographicsvqa_images/3{number}121.jpeg": ExampleImage(width=80, height=200, seed=number)
        for number in (0, 1)
    },
    good=["pinterest", "27", "radio,  TV", "South", "CAFÉ"],
    bad=["Facebook", "73", "a phone", "", "thé"],
)
