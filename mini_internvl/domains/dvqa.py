"""DVQA: questions about drawn bar charts.

The raw folder holds ``train_qa.json``, a list of rows with ``image``, ``question``, ``answer`` and ``question_id``,
and the charts in ``images`` (kushalkafle/DVQA_dataset). A row's ``answer_bbox``, where the answer stands in the chart,
is not read. InternVL trains on the 200,000 training charts, all questions of one in a row; so does this file, eight
in a sample.
DVQA has two validation sets that the paper does not print. ChartQA's test, which it does, measures what is learnt
about charts. Source: ``README.md`` of kushalkafle/DVQA_dataset; the fields as several public loaders read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _vqa, chartqa
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._questions import Images, Question, fault, lacking, needed, said
from mini_internvl.data import Fault
from mini_internvl.data.files import scan
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "dvqa"
TITLE = "Bar charts (DVQA)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = {"chartqa": DomainBenchmark(test="test")}
FILE = "train_qa.json"


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 questions about one chart a sample; a fault for each question without answer or chart."""
    chosen("split", split, SPLITS)
    path = needed(Path(raw), FILE, "https://github.com/kushalkafle/DVQA_dataset")
    yield from samples(_read(path, Images(Path(raw) / "images", Path(raw))), SOURCE)


def _read(path: Path, images: Images) -> Iterator[Question | Fault]:
    for row in scan(path):
        if isinstance(row, Fault):
            yield row
        elif wrong := lacking(row.raw, "question_id", "image", "question", "answer"):
            yield fault(row, wrong)
        elif (place := images.find(name := said(row.raw, "image"))) is None:
            yield fault(row, images.missing(name))
        else:
            prompt = _vqa.short_question(said(row.raw, "question"), vlmevalkit=False)
            yield Question(id=said(row.raw, "question_id"), image=place, prompt=prompt, answer=said(row.raw, "answer"))


def _row(number: int, question: str, answer: Any, image: str = "bar_train_00000001.png") -> dict[str, Any]:
    """A row of the file, for the example."""
    row = {"question": question, "question_id": number, "template_id": "data", "answer": answer, "image": image}
    return {**row, "answer_bbox": [49.6, 72.3, 30.1, 42.6]}


_SHORT = "Answer the question using a single word or phrase."
_CHART = "images/bar_train_0000000{}.png"
EXAMPLE = DomainExample(
    files={
        FILE: [
            _row(1, "How many bars are there?", "four"),
            _row(2, "What is the value of the largest bar?", 9),
            _row(3, "Is there an answer?", None),
            _row(4, "Is the answer a text?", {"text": "no"}),
            _row(5, "Is the chart there?", "no", "bar_train_00000009.png"),
            {"question_id": 6},
            _row(7, "Is any bar horizontal?", "no", "bar_train_00000002.png"),
        ],
        **chartqa.EXAMPLE.files,
    },
    images={**{_CHART.format(n): ExampleImage(seed=n) for n in (1, 2)}, **chartqa.EXAMPLE.images},
    samples={
        "train": [
            expected(
                SOURCE,
                "1",
                _CHART.format(1),
                (f"How many bars are there? {_SHORT}", "four"),
                (f"What is the value of the largest bar? {_SHORT}", "9"),
            ),
            expected(SOURCE, "7", _CHART.format(2), (f"Is any bar horizontal? {_SHORT}", "no")),
        ]
    },
    faults={"train": 4},
)
