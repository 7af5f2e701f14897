"""ChartQA: questions about charts, from the authors' own files.

The raw folder holds ``ChartQA Dataset`` or its content: ``train/train_human.json``, ``train/train_augmented.json`` and
``train/png``, and the same of ``val`` and ``test`` (vis-nlp/ChartQA). Rows have ``imgname``, ``query`` and ``label``.
The benchmark's file reads them: both halves, asked as it asks.
Source: ``README.md`` of vis-nlp/ChartQA.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import chartqa
from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "chartqa"
TITLE = "Charts (ChartQA)"
SPLITS = ("train", "validation")
RECIPE = AdaptRecipe()
BENCHMARKS = {"chartqa": DomainBenchmark(test="test", validation="validation")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 questions about one chart a sample; a fault for each question without answer or chart."""
    yield from samples(chartqa.read(raw, chosen("split", split, SPLITS)), SOURCE)


def _row(image: str, question: Any, answer: Any) -> dict[str, Any]:
    """A row of the files, for the example."""
    return {"imgname": image, "query": question, "label": answer}


_SHORT = "Answer the question using a single word or phrase."
_PLACE = "ChartQA Dataset"
EXAMPLE = DomainExample(
    files={
        f"{_PLACE}/train/train_human.json": [
            _row("1.png", "What share does the red bar have?", "12%"),
            _row("1.png", "Which country is first?", "Côte d'Ivoire"),
            _row("1.png", "Is there an answer?", " "),
            _row("1.png", "Is the answer a text?", ["Yes"]),
            _row("9.png", "Is the chart there?", "No"),
            "no object",
        ],
        f"{_PLACE}/train/train_augmented.json": [
            _row("2.png", "How many people were asked in 2016?", "1,200"),
            _row("", "Which chart is it?", "none"),
        ],
        f"{_PLACE}/val/val_human.json": [_row("3.png", "Which line is on top?", "Total")],
        f"{_PLACE}/val/val_augmented.json": [_row("3.png", "What was the revenue in 2020?", 42)],
        f"{_PLACE}/test/test_human.json": [_row("4.png", "How many bars are grey?", "0")],
        f"{_PLACE}/test/test_augmented.json": [_row("4.png", "What was the revenue in 2021?", "43")],
    },
    images={
        f"{_PLACE}/{split}/png/{number}.png": ExampleImage(width=160, height=120, seed=number)
        for number, split in ((1, "train"), (2, "train"), (3, "val"), (4, "test"))
    },
    samples={
        "train": [
            expected(
                SOURCE,
                "human/0",
                f"{_PLACE}/train/png/1.png",
                (f"What share does the red bar have? {_SHORT}", "12%"),
                (f"Which country is first? {_SHORT}", "Côte d'Ivoire"),
            ),
            expected(
                SOURCE,
                "augmented/0",
                f"{_PLACE}/train/png/2.png",
                (f"How many people were asked in 2016? {_SHORT}", "1,200"),
            ),
        ],
        "validation": [
            expected(
                SOURCE,
                "human/0",
                f"{_PLACE}/val/png/3.png",
                (f"Which line is on top? {_SHORT}", "Total"),
                (f"What was the revenue in 2020? {_SHORT}", "42"),
            )
        ],
    },
    faults={"train": 5, "validation": 0},
)
