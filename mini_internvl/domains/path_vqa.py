"""PathVQA: questions about pathology images.

The raw folder holds ``train-*.parquet``, ``validation-*.parquet`` and ``test-*.parquet`` (flaviagiammarino/path-vqa on
the Hugging Face hub), or ``train.jsonl`` and so on; the authors' pickles are refused. The benchmark's file says how
they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import path_vqa
from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "path-vqa"
TITLE = "Pathology images (PathVQA)"
SPLITS = ("train", "validation")
RECIPE = AdaptRecipe()
BENCHMARKS = {"path_vqa": DomainBenchmark(test="test", validation="validation")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 questions about one image a sample; a fault for each question without answer or image."""
    yield from samples(path_vqa.read(raw, chosen("split", split, SPLITS)), SOURCE)


_SHORT = "Answer the question using a single word or phrase."
_row = path_vqa.example_row
EXAMPLE = DomainExample(
    files={
        "train.jsonl": [
            _row("where are liver stem cells located?", "in the canals of hering"),
            _row("are bile duct cells shown here?", "yes"),
            _row("is there an answer?", None),
            _row("is the image there?", "no", "images/9.jpg"),
            _row("is there an image?", "no", None),
        ],
        "validation.jsonl": [_row("what is present?", "lymph node")],
    },
    images={"images/1.jpg": ExampleImage()},
    samples={
        "train": [
            expected(
                SOURCE,
                "1",
                "images/1.jpg",
                (f"where are liver stem cells located?\n{_SHORT}", "in the canals of hering"),
                (f"are bile duct cells shown here?\n{_SHORT}", "yes"),
            )
        ],
        "validation": [expected(SOURCE, "1", "images/1.jpg", (f"what is present?\n{_SHORT}", "lymph node"))],
    },
    faults={"train": 3, "validation": 0},
)
