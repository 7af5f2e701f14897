"""RSVQA-HR: questions about high-resolution aerial images, from the authors' own files.

The raw folder holds ``USGS_split_train_questions.json`` with ``USGS_split_train_answers.json`` and
``USGS_split_train_images.json`` beside it, the same for ``val``, ``test`` and ``test_phili`` (the benchmark's
``test2``), and the images ``Data/ID.tif`` (https://rsvqa.sylvainlobry.com). Questions are asked as the benchmark asks
them. Records of other splits, which the files list as not active, are no faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _rsvqa, rsvqa_hr
from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "rsvqa-hr"
TITLE = "Aerial images (RSVQA-HR)"
SPLITS = ("train", "validation")
RECIPE = AdaptRecipe()
BENCHMARKS = {"rsvqa_hr": DomainBenchmark(test="test1", validation="validation")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 questions about one image a sample; a fault for each question without answer or image."""
    stem = rsvqa_hr.STEMS[chosen("split", split, SPLITS)]
    yield from samples(_rsvqa.read_original(Path(raw), stem, rsvqa_hr.FOLDERS), SOURCE)


_SHORT = "Answer the question using a single word or phrase."
_ASKED: list[dict[str, Any]] = [
    {"type": "area", "question": "What is the area covered by roads?", "answer": "1500m2"},
    {"type": "presence", "question": "Is a farmland present?", "answer": "yes", "answers_ids": [99]},
    {"type": "presence", "question": "Is a road present?", "answer": ""},
    {"type": "presence", "question": "Is a river present?", "answer": None},
    {"type": "presence", "question": "Is a lake present?", "answer": "no", "img_id": 2},
    {"type": "presence", "question": "Is a school present?", "answer": "no", "img_id": 4},
    {"type": "comp", "question": " ", "answer": "no"},
    {"type": "comp", "question": "Are there less roads than buildings?", "answer": "no"},
]
EXAMPLE = DomainExample(
    **_rsvqa.original_example({"USGS_split_train": _ASKED, "USGS_split_val": _ASKED[:1]}, "Data"),
    samples={
        "train": [
            expected(
                SOURCE,
                "2",
                "Data/3.tif",
                (f"What is the area covered by roads?\n{_SHORT}", "1500m2"),
                (f"Are there less roads than buildings?\n{_SHORT}", "no"),
            )
        ],
        "validation": [
            expected(SOURCE, "2", "Data/3.tif", (f"What is the area covered by roads?\n{_SHORT}", "1500m2"))
        ],
    },
    faults={"train": 6, "validation": 0},
)
