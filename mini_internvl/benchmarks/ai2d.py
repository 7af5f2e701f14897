"""AI2D: multiple choice about school-book diagrams, in InternVL's file with the options inside the question.

The paper's protocol parses nothing: only the bare letter counts, in either case, so "A." and "(A)" are wrong. The
VLMEvalKit protocols read an option out of the answer (see ``metrics/options.py``), without a judge; they take the
options from the question's lines "A. text".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _vqa
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen, locate
from mini_internvl.benchmarks._tally import Asked, empty_answers, scorer
from mini_internvl.metrics.options import infer_option
from mini_internvl.metrics.relaxed import exact_right
from mini_internvl.records import Item

TITLE = "AI2D"
SPLITS = ("test",)
PROTOCOLS = {
    "paper": "InternVL's script: the answer is the gold letter and nothing else, in either case.",
    "vlmevalkit-2024-10": "VLMEvalKit of October 2024: an option is inferred from the answer, without a judge.",
    "vlmevalkit-head": "VLMEvalKit now: as before, with stricter rules for long answers.",
}
PRIMARY_METRIC = "accuracy"
FOLDERS = ("ai2diagram", "data/ai2diagram")
FILES = ("test_vlmevalkit.jsonl", "ai2d_test_vlmevalkit.jsonl")
OPTION = re.compile(r"^\(?([A-Z])[.:)] ?(.*)$", re.MULTILINE)


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a row of ``test_vlmevalkit.jsonl``; DataError says what is wrong with the files.

    The official id is the image's path, so an image's further questions get a number, such as ``...png#2``. The
    question is asked as it stands in the file, which holds the options and the instruction.
    """
    chosen("split", split, SPLITS)
    kind = chosen("protocol", protocol, PROTOCOLS)
    path = locate(root, "ai2d", FILES, FOLDERS)
    rows = _vqa.read_questions(path)
    names = _vqa.unique(row["question_id"] for row in rows)
    images = _vqa.question_images(path, [row["image"] for row in rows], Path(root))
    tokens = 10 if kind == "paper" else _vqa.VLMEVALKIT_NEW_TOKENS
    for row, name, image in zip(rows, names, images, strict=True):
        reference = {"answers": _vqa.gold_list(row["answer"]), "options": read_options(row["question"])}
        yield _vqa.ask(name, [image], row["question"], reference, max_tiles=6, max_new_tokens=tokens)


def read_options(question: str) -> dict[str, str]:
    """Letter -> text of the lines "A. text", "B. text" and so on; a line that breaks the order is no option."""
    options: dict[str, str] = {}
    for letter, text in OPTION.findall(question):
        if letter == chr(ord("A") + len(options)):
            options[letter] = text.strip()
    return options


def right(item: Item, text: str, protocol: str = "paper") -> bool:
    """Whether an answer counts in a protocol."""
    answer = item.reference["answers"]
    if protocol == "paper":
        return exact_right(text, answer)
    letter = infer_option(text, item.reference["options"], version=protocol.removeprefix("vlmevalkit-"))
    return letter is not None and letter in answer


def _notes(asked: Asked) -> dict[str, int]:
    """``empty`` answers, and ``more than a letter``, which the paper's protocol counts as wrong."""
    return {**empty_answers(asked), "more than a letter": sum(len(text.strip()) > 1 for _, text in asked)}


score = scorer("ai2d", PROTOCOLS, right, notes=_notes)


def _row(number: int, question: str, options: str, answer: str) -> dict[str, Any]:
    name = f"data/ai2diagram/AI2D_TEST/{number}.png"
    lines = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", options.split("|"), strict=False))
    text = f"{question}{lines}\nAnswer with the option's letter from the given choices directly."
    return {"image": name, "question": text, "question_id": name, "answer": answer}


EXAMPLE = WorkedExample(
    files={
        "ai2diagram/test_vlmevalkit.jsonl": [
            _row(1, "Which stage follows the egg?", "adult moth|larva|pupa|egg", "B"),
            _row(1, "Which stage comes last?", "adult moth|larva|pupa|egg", "A"),
            _row(2, "What does the letter C show?", "A|B|C|D", "C"),
            _row(3, "How many are there?", "3|4|5|13", "D"),
            _row(4, "Is the leaf eaten?", "True|False", "A"),
            _row(4, "图中是什么？", "树叶|树根|树干|花", "A"),
        ]
    },
    images={f"ai2diagram/AI2D_TEST/{number}.png": ExampleImage(seed=number) for number in (1, 2, 3, 4)},
    good=["B", " a ", "c\n", "D", "A", "A"],
    bad=["B.", "(A)", "C. C", "13", "", "树叶"],
)
