"""PMC-VQA: multiple choice about figures of medical articles.

The prompt lists the four choices and asks for the letter; an answer is read as VLMEvalKit reads one, without a judge
(``metrics/options.py``). Unusual: choices stand in the file with their letter ("A:Diffuse uptake pattern"), which is
taken off; in version 2 the column ``Answer`` holds the letter, in version 1 ``Answer_label`` does.
Official files: ``train.csv``, ``test.csv`` (version 1) and ``train_2.csv``, ``test_2.csv`` (version 2), with
Figure_path, Question, Answer, Choice A to Choice D; the checked part of version 1's test is ``test_clean.csv``. Images
lie in ``images``, ``images_2`` or ``figures`` (xmcmic/PMC-VQA on the Hugging Face hub).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mini_internvl.benchmarks import _choices, _questions
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen, locate
from mini_internvl.benchmarks._questions import Images, Question, fault, lacking, said
from mini_internvl.benchmarks._tally import scorer
from mini_internvl.data import Fault, Row
from mini_internvl.data.files import scan
from mini_internvl.records import Item

TITLE = "PMC-VQA"
FILES: Mapping[str, Sequence[str]] = {
    "test": ("test.csv", "test_2.csv"),
    "clean": ("test_clean.csv",),
    "train": ("train.csv", "train_2.csv"),
}
SPLITS = tuple(FILES)
PROTOCOLS = {"letter": "The letter that VLMEvalKit's rules of October 2024 find in the answer, without a judge."}
PRIMARY_METRIC = "accuracy"
LETTERS = "ABCD"
_LETTER = re.compile(r"^[A-D]\s*:\s*")
FOLDERS = ("images", "images_2", "images_2/figures", "figures", "")


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a row, numbered; DataError names what is wrong with the files."""
    split = chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    return _questions.items(read(root, split), max_tiles=6, max_new_tokens=50)


def read(root: str | Path, split: str) -> Iterator[Question | Fault]:
    """The questions of a split, numbered, and a fault for each that cannot be used."""
    path = locate(root, "pmc_vqa", FILES[split])
    images = Images(*(path.parent / folder for folder in FOLDERS))
    for number, row in enumerate(scan(path), 1):
        yield row if isinstance(row, Fault) else _read(row, number, images)


def _read(row: Row, number: int, images: Images) -> Question | Fault:
    cells = {name.strip(): cell for name, cell in row.raw.items()}
    if wrong := lacking(cells, "Figure_path", "Question"):
        return fault(row, wrong)
    choices = ((letter, _option(said(cells, f"Choice {letter}"))) for letter in LETTERS)
    options = {letter: text for letter, text in choices if text}
    letter = (said(cells, "Answer_label") or said(cells, "Answer")).upper()
    if letter not in options:
        return fault(row, f'the answer "{letter}" is the letter of no choice')
    if (place := images.find(name := said(cells, "Figure_path"))) is None:
        return fault(row, images.missing(name))
    text = said(cells, "Question")
    prompt = _choices.choice_prompt({"question": text}, options, chinese=False)
    reference = {"answer": letter, "question": text, "options": options}
    return Question(id=str(number), image=place, prompt=prompt, answer=letter, reference=reference)


def _option(text: str) -> str:
    """A choice without its letter."""
    return _LETTER.sub("", text)


def right(item: Item, text: str, protocol: str = "letter") -> bool:
    """Whether the answer means the right letter."""
    return _choices.choose(item, text, version="2024-10", judge=None).letter == item.reference["answer"]


score = scorer("pmc_vqa", PROTOCOLS, right)

HEADER = "index,Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label"
EXAMPLE = WorkedExample(
    files={
        "test.csv": "\n".join(
            [
                HEADER,
                '0,PMC1_F1.jpg,"What is the uptake pattern, if any?",Focal,A:Diffuse,B:Focal,C:No uptake,D:Unclear,B',
                "1,PMC1_F1.jpg,What modality is shown?,CT, A: CT, B: MRI, C: X-ray, D: Ultrasound,A",
                "",
            ]
        )
    },
    images={"images/PMC1_F1.jpg": ExampleImage()},
    good=["B", "A. CT"],
    bad=["A", "It is MRI."],
)
