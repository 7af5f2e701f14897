"""SLAKE: questions in English and Chinese about radiology images.

Answers are closed or open (``_medical.py``); a question in Chinese is asked for a word or phrase in Chinese. There are
figures for each language.
Official files: ``train.json``, ``validate.json`` and ``test.json``, lists with qid, img_name, question, answer, q_lang,
answer_type and content_type, and the images in ``imgs`` (https://www.med-vqa.com/slake).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _medical, _questions
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen, locate
from mini_internvl.benchmarks._questions import Images, Question, fault, lacking, said
from mini_internvl.data import Fault
from mini_internvl.data.files import scan
from mini_internvl.records import Item

TITLE = "SLAKE"
FILES = {"test": "test.json", "validation": "validate.json", "train": "train.json"}
SPLITS = tuple(FILES)
PROTOCOLS, PRIMARY_METRIC, right = _medical.PROTOCOLS, _medical.PRIMARY_METRIC, _medical.right
FIELDS = ("qid", "img_name", "question", "answer", "answer_type", "q_lang")


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, with the official id; DataError names what is wrong with the files."""
    split = chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    return _questions.items(read(root, split), max_new_tokens=_medical.NEW_TOKENS)


def read(root: str | Path, split: str) -> Iterator[Question | Fault]:
    """The questions of a split, and a fault for each that cannot be used."""
    path = locate(root, "slake", [FILES[split]])
    images = Images(path.parent / "imgs", path.parent)
    for row in scan(path):
        if isinstance(row, Fault):
            yield row
        elif wrong := lacking(row.raw, *FIELDS):
            yield fault(row, wrong)
        elif (place := images.find(name := said(row.raw, "img_name"))) is None:
            yield fault(row, images.missing(name))
        else:
            qid, _, text, answer, kind, language = (said(row.raw, key) for key in FIELDS)
            closed, content = kind.upper() == "CLOSED", said(row.raw, "content_type")
            yield _medical.question(qid, place, text, answer, closed=closed, language=language, content=content)


score = _medical.make_score("slake")


def example_row(number: int, question: str, answer: str, kind: str, language: str, **more: Any) -> dict[str, Any]:
    """A row of the official files, for the examples."""
    row = {"qid": number, "img_id": 1, "img_name": "xmlab1/source.jpg", "question": question, "answer": answer}
    return {**row, "answer_type": kind, "q_lang": language, "content_type": "Modality", "modality": "CT", **more}


EXAMPLE = WorkedExample(
    files={
        "test.json": [
            example_row(1, "What modality is used?", "MRI", "OPEN", "en"),
            example_row(2, "Does the picture contain liver?", "Yes", "CLOSED", "en"),
            example_row(3, "图中有肝脏吗？", "有", "CLOSED", "zh"),
        ]
    },
    images={"imgs/xmlab1/source.jpg": ExampleImage()},
    good=["mri", "Yes.", "有。"],
    bad=["CT", "", "没有"],
)
