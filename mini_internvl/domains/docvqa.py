"""DocVQA: questions about scanned pages, from the RRC's annotation files.

The raw folder holds ``train_v1.0.json`` or ``train_v1.0_withQT.json``, in ``train`` or ``spdocvqa_qas`` or directly,
and the pages in ``documents`` or ``spdocvqa_images`` beside it. A question has several right answers, the first of
which is taught. The answers of the RRC's test are not published, so ``val`` is the test here, and is not trained on.
Source: the RRC's page of the data set (https://rrc.cvc.uab.es/?ch=17).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _vqa
from mini_internvl.benchmarks import docvqa as benchmark
from mini_internvl.benchmarks._files import chosen, locate
from mini_internvl.benchmarks._questions import Images, Question, fault, lacking, said
from mini_internvl.data import Fault, Row
from mini_internvl.data.files import scan
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "docvqa"
TITLE = "Scanned pages (DocVQA)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = {"docvqa": DomainBenchmark(test="val")}
FILES = [
    f"{folder}{name}"
    for folder in ("train/", "spdocvqa_qas/", "")
    for name in ("train_v1.0_withQT.json", "train_v1.0.json")
]
FOLDERS = ("documents", "spdocvqa_images", "")


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 questions about one page a sample; a fault for each question without answer or page."""
    chosen("split", split, SPLITS)
    yield from samples(_read(locate(raw, "docvqa", FILES, ("data/docvqa",))), SOURCE)


def _read(path: Path) -> Iterator[Question | Fault]:
    images = Images(*(place / folder for place in (path.parent, path.parent.parent) for folder in FOLDERS))
    for row in scan(path, "data"):
        yield row if isinstance(row, Fault) else _question(row, images)


def _question(row: Row, images: Images) -> Question | Fault:
    if wrong := lacking(row.raw, "questionId", "question", "image"):
        return fault(row, wrong)
    answers = row.raw.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        return fault(row, "answers is no list of texts")
    answer = next((text for answer in answers if (text := answer.strip())), "")
    if not answer:
        return fault(row, "answers holds no text")
    name = said(row.raw, "image")
    if (place := images.find(Path(name).name)) is None:
        return fault(row, images.missing(name))
    prompt = _vqa.short_question(said(row.raw, "question"), vlmevalkit=False)
    return Question(id=said(row.raw, "questionId"), image=place, prompt=prompt, answer=answer)


def _row(number: int, question: str, answers: Any, page: int = 1) -> dict[str, Any]:
    """A row of the file, for the example."""
    image = f"documents/abcd0001_{page}.png"
    return {"questionId": number, "question": question, "answers": answers, "image": image, "docId": 1}


_SHORT = "Answer the question using a single word or phrase."
_PAGE = "train/documents/abcd0001_{}.png"
EXAMPLE = DomainExample(
    files={
        "train/train_v1.0_withQT.json": {
            "dataset_name": "SP-DocVQA",
            "dataset_split": "train",
            "data": [
                _row(337, "What is the date mentioned in this letter?", ["1/8/93", "1/8/1993"]),
                _row(338, "What is the contact person's name?", [" ", "P. Carter"]),
                _row(339, "Is there an answer?", []),
                _row(340, "Is the answer in a list?", "yes"),
                _row(341, "Is the page there?", ["no"], 9),
                _row(342, " ", ["yes"]),
                _row(343, "Was heißt „Straße“?", ["street"], 2),
            ],
        },
        **{name: content for name, content in benchmark.EXAMPLE.files.items() if name.endswith("val_v1.0.json")},
    },
    images={
        **{_PAGE.format(page): ExampleImage(width=100, height=140, seed=page) for page in (1, 2)},
        **{name: image for name, image in benchmark.EXAMPLE.images.items() if "/val/" in name},
    },
    samples={
        "train": [
            expected(
                SOURCE,
                "337",
                _PAGE.format(1),
                (f"What is the date mentioned in this letter? {_SHORT}", "1/8/93"),
                (f"What is the contact person's name? {_SHORT}", "P. Carter"),
            ),
            expected(SOURCE, "343", _PAGE.format(2), (f"Was heißt „Straße“? {_SHORT}", "street")),
        ]
    },
    faults={"train": 4},
)
