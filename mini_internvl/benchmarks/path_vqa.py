"""PathVQA: questions about pathology images.

A question whose answer is yes or no is closed, any other open (``_medical.py``). Unusual: the authors publish pickle
files, which can run code when they are opened and so are refused by name. Read instead are the rows of the Hugging
Face hub's copy, whose Parquet files hold the images too, or JSON lines with ``image`` (a path), ``question`` and
``answer``.
Official files: ``train-00000-of-00007.parquet`` and so on, ``validation-...``, ``test-...``, below ``data`` or directly
(flaviagiammarino/path-vqa); or ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _medical, _questions
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen, refuse_pickles
from mini_internvl.benchmarks._questions import Images, Question, fault, lacking, said
from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.files import scan
from mini_internvl.records import Item

TITLE = "PathVQA"
SPLITS = ("test", "validation", "train")
PROTOCOLS, PRIMARY_METRIC, right = _medical.PROTOCOLS, _medical.PRIMARY_METRIC, _medical.right


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, numbered in the split; DataError names what is wrong with the files."""
    split = chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    return _questions.items(read(root, split), max_new_tokens=_medical.NEW_TOKENS)


def read(root: str | Path, split: str) -> Iterator[Question | Fault]:
    """The questions of a split, and a fault for each that cannot be used."""
    number = 0
    for path in _files(Path(root), split):
        images = Images(path.parent, path.parent.parent)
        for row in scan(path):
            number += 1
            yield row if isinstance(row, Fault) else _read(row, number, images)


def _files(root: Path, split: str) -> list[Path]:
    """The files of a split, in their order; DataError where there are none, and where there are pickles alone."""
    for folder in (root / "path_vqa" / "data", root / "path_vqa", root / "data", root):
        found = sorted(folder.glob(f"{split}-*.parquet")) or sorted(folder.glob(f"{split}.jsonl"))
        if found:
            return found
    if not root.is_dir():
        raise DataError(f"the data folder {root} does not exist")
    refuse_pickles(root, "the Parquet files of flaviagiammarino/path-vqa on the Hugging Face hub")
    raise DataError(f"{root} holds neither {split}-*.parquet nor {split}.jsonl; see docs/benchmarks/path_vqa.md")


def _read(row: Row, number: int, images: Images) -> Question | Fault:
    if wrong := lacking(row.raw, "question", "answer"):
        return fault(row, wrong)
    try:
        place = images.shown(row.raw.get("image"))
    except ValueError as error:
        return fault(row, str(error))
    text, answer = said(row.raw, "question"), said(row.raw, "answer")
    return _medical.question(str(number), place, text, answer, closed=answer.lower() in ("yes", "no"))


score = _medical.make_score("path_vqa")


def example_row(question: str, answer: Any, image: Any = "images/1.jpg") -> dict[str, Any]:
    """A row, for the examples."""
    return {"image": image, "question": question, "answer": answer}


EXAMPLE = WorkedExample(
    files={
        "test.jsonl": [
            example_row("where are liver stem cells located?", "in the canals of hering"),
            example_row("are bile duct cells shown here?", "yes"),
        ]
    },
    images={"images/1.jpg": ExampleImage()},
    good=["in the canals of Hering.", "Yes"],
    bad=["the canals", "no"],
)
