"""RSVQA-LR: questions about low-resolution satellite images, from the authors' own files.

The raw folder holds ``LR_split_train_questions.json`` with ``LR_split_train_answers.json`` and
``LR_split_train_images.json`` beside it, the same for ``val`` and ``test``, and the images ``Images_LR/ID.tif``
(https://rsvqa.sylvainlobry.com). Questions are asked as the benchmark asks them. Records of other splits, which the
files list as not active, are no faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _rsvqa, rsvqa_lr
from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "rsvqa-lr"
TITLE = "Satellite images (RSVQA-LR)"
SPLITS = ("train", "validation")
RECIPE = AdaptRecipe()
BENCHMARKS = {"rsvqa_lr": DomainBenchmark(test="test", validation="validation")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 questions about one image a sample; a fault for each question without answer or image."""
    stem = rsvqa_lr.STEMS[chosen("split", split, SPLITS)]
    yield from samples(_rsvqa.read_original(Path(raw), stem, rsvqa_lr.FOLDERS), SOURCE)


_SHORT = "Answer the question using a single word or phrase."
_ASKED: list[dict[str, Any]] = [
    {"type": "rural_urban", "question": "Is it a rural or an urban area", "answer": "rural"},
    {"type": "count", "question": "What is the number of roads?", "answer": "17"},
    {"type": "presence", "question": "Is a farmland present?", "answer": "yes", "answers_ids": [99]},
    {"type": "presence", "question": "Is a road present?", "answer": ""},
    {"type": "presence", "question": "Is a river present?", "answer": None},
    {"type": "presence", "question": "Is a lake present?", "answer": "no", "img_id": 2},
    {"type": "presence", "question": "Is a school present?", "answer": "no", "img_id": 4},
    {"type": "comp", "question": " ", "answer": "no"},
    {"type": "comp", "question": "Are there more roads than lakes?", "answer": "yes"},
]
EXAMPLE = DomainExample(
    **_rsvqa.original_example({"LR_split_train": _ASKED, "LR_split_val": _ASKED[:1]}, "Images_LR"),
    samples={
        "train": [
            expected(
                SOURCE,
                "2",
                "Images_LR/3.tif",
                (f"Is it a rural or an urban area\n{_SHORT}", "rural"),
                (f"What is the number of roads?\n{_SHORT}", "17"),
                (f"Are there more roads than lakes?\n{_SHORT}", "yes"),
            )
        ],
        "validation": [
            expected(SOURCE, "2", "Images_LR/3.tif", (f"Is it a rural or an urban area\n{_SHORT}", "rural"))
        ],
    },
    faults={"train": 6, "validation": 0},
)
