"""VQA-RAD: questions by clinicians about radiology images.

Test questions are those whose ``phrase_type`` begins with ``test_``, as the authors say. The answers are closed or open
(``_medical.py``). Unusual: an ``answer_type`` may have a space at its end, and answers may be numbers.
Official files: ``VQA_RAD Dataset Public.json``, a list with qid, image_name, question, answer, question_type,
answer_type and phrase_type, and the images in ``VQA_RAD Image Folder`` (https://osf.io/89kps).
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

TITLE = "VQA-RAD"
SPLITS = ("test", "train")
PROTOCOLS, PRIMARY_METRIC, right = _medical.PROTOCOLS, _medical.PRIMARY_METRIC, _medical.right
FILE = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, with the official id; DataError names what is wrong with the files."""
    split = chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    return _questions.items(read(root, split), max_new_tokens=_medical.NEW_TOKENS)


def read(root: str | Path, split: str) -> Iterator[Question | Fault]:
    """The questions of a split, and a fault for each that cannot be used."""
    path = locate(root, "vqa_rad", [FILE])
    images = Images(path.parent / IMAGES, path.parent / "images", path.parent)
    for row in scan(path):
        if isinstance(row, Fault):
            yield row
        elif said(row.raw, "phrase_type").startswith("test_") != (split == "test"):
            continue
        elif wrong := lacking(row.raw, "qid", "image_name", "question", "answer", "answer_type"):
            yield fault(row, wrong)
        elif (place := images.find(name := said(row.raw, "image_name"))) is None:
            yield fault(row, images.missing(name))
        else:
            text, answer, kind = (said(row.raw, key) for key in ("question", "answer", "answer_type"))
            yield _medical.question(said(row.raw, "qid"), place, text, answer, closed=kind.upper() == "CLOSED")


score = _medical.make_score("vqa_rad")


def example_row(number: int, phrase: str, question: str, answer: Any, kind: str, **more: Any) -> dict[str, Any]:
    """A row of the official file, for the examples."""
    row = {"qid": number, "phrase_type": phrase, "image_name": "synpic1.jpg", "question": question, "answer": answer}
    return {**row, "answer_type": kind, "question_type": "PRES", "image_organ": "HEAD", **more}


EXAMPLE = WorkedExample(
    files={
        FILE: [
            example_row(1, "test_freeform", "Is there a fracture?", "Yes", "CLOSED "),
            example_row(2, "freeform", "Is there a mass?", "No", "CLOSED"),
            example_row(3, "test_para", "Where is the lesion?", "left temporal lobe", "OPEN"),
            example_row(4, "test_freeform", "How many masses are there?", 2, "OPEN"),
        ]
    },
    images={f"{IMAGES}/synpic1.jpg": ExampleImage()},
    good=["yes.", "Left temporal lobe", "2"],
    bad=["no", "temporal lobe", ""],
)
