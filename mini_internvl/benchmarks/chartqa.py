"""ChartQA: questions about charts, half written by people ("human"), half generated ("augmented").

The paper's number is the plain mean of the two halves' relaxed accuracies, so both are one benchmark here, and the
splits "human" and "augmented" ask one half alone. Unusual: in the paper's protocol the tolerance of 5% is relative to
the model's answer, not to the gold one (see ``metrics/relaxed.py``); "standard-order" is the other way round.
The test is read from InternVL's two files, or from the authors' own, which also hold "validation" and "train"
(vis-nlp/ChartQA, ``ChartQA Dataset/SPLIT/SPLIT_HALF.json`` with ``png/`` beside it).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _questions, _vqa
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen, locate
from mini_internvl.benchmarks._questions import Images, Question, fault, lacking, said
from mini_internvl.benchmarks._tally import Asked, Judge, Tally, empty_answers, with_answers
from mini_internvl.data import Fault
from mini_internvl.data.files import scan
from mini_internvl.metrics.relaxed import relaxed_right, vlmevalkit_golds
from mini_internvl.records import Item, Score

TITLE = "ChartQA"
HALVES = ("human", "augmented")
ORIGINAL = {"test": "test", "validation": "val", "train": "train"}
"""Split -> its name in the authors' files."""
SPLITS = ("test", *HALVES, "validation", "train")
PLACES = ("ChartQA Dataset/", "ChartQA_Dataset/", "")  # folders of the authors' files
PROTOCOLS = {
    "paper": "InternVL's script: the 5% are relative to the model's answer.",
    "standard-order": "The same script with the 5% relative to the gold answer, as ChartQA defines it.",
    "vlmevalkit-2024-10": "VLMEvalKit of October 2024: prompt with a line break, 5% of the model's answer.",
    "vlmevalkit-head": "VLMEvalKit now: prompt with a line break, 5% of the gold answer.",
}
PRIMARY_METRIC = "accuracy"


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, id ``human/<question_id>`` or ``augmented/<question_id>``; DataError names what is wrong.

    The files are ``test_human.jsonl`` and ``test_augmented.jsonl``, the human half first; or the authors' own, where
    the id is the number of the question in its file, from 0.
    """
    name, kind = chosen("split", split, SPLITS), chosen("protocol", protocol, PROTOCOLS)
    vlmevalkit = kind.startswith("vlmevalkit")
    tokens = _vqa.VLMEVALKIT_NEW_TOKENS if vlmevalkit else _vqa.NEW_TOKENS
    halves = [half for half in HALVES if name == half or name not in HALVES]
    paths = [_path(root, "test" if name in HALVES else name, half) for half in halves]
    for half, path in zip(halves, paths, strict=True):
        if path.suffix == ".json":
            yield from _questions.items(_read(path, half, vlmevalkit=vlmevalkit), max_new_tokens=tokens)
            continue
        rows = _vqa.read_questions(path)
        names = _vqa.unique(f"{half}/{row['question_id']}" for row in rows)
        images = _vqa.question_images(path, [row["image"] for row in rows], Path(root))
        for row, item_id, image in zip(rows, names, images, strict=True):
            text = _vqa.short_question(row["question"], vlmevalkit=vlmevalkit)
            reference = {"half": half, "answers": row["answer"]}
            yield _vqa.ask(item_id, [image], text, reference, max_tiles=12, max_new_tokens=tokens)


def read(root: str | Path, split: str) -> Iterator[Question | Fault]:
    """The questions of a split in the authors' files, the human half first, and a fault for each of no use."""
    for half in HALVES:
        yield from _read(_path(root, split, half, original=True), half)


def _path(root: str | Path, split: str, half: str, *, original: bool = False) -> Path:
    """The file of a half: InternVL's jsonl of the test, or the authors' json; DataError where it is missing."""
    published = [f"test_{half}.jsonl"] if split == "test" and not original else []
    folder = ORIGINAL[split]
    names = [*published, *(f"{place}{folder}/{folder}_{half}.json" for place in PLACES)]
    return locate(root, "chartqa", names, ["data/chartqa"])


def _read(path: Path, half: str, *, vlmevalkit: bool = False) -> Iterator[Question | Fault]:
    """The questions of one of the authors' files."""
    images = Images(path.parent / "png")
    for number, row in enumerate(scan(path)):
        if isinstance(row, Fault):
            yield row
        elif wrong := lacking(row.raw, "imgname", "query", "label"):
            yield fault(row, wrong)
        elif (place := images.find(name := said(row.raw, "imgname"))) is None:
            yield fault(row, images.missing(name))
        else:
            prompt = _vqa.short_question(said(row.raw, "query"), vlmevalkit=vlmevalkit)
            answer = said(row.raw, "label")
            reference = {"half": half, "answers": answer}
            yield Question(id=f"{half}/{number}", image=place, prompt=prompt, answer=answer, reference=reference)


def right(item: Item, text: str, protocol: str = "paper") -> bool:
    """Whether an answer counts in a protocol."""
    golds = item.reference["answers"]
    if protocol.startswith("vlmevalkit"):
        golds = vlmevalkit_golds(golds, texts_only=protocol == "vlmevalkit-2024-10")
    by_answer = protocol in ("paper", "vlmevalkit-2024-10")
    return relaxed_right(text, golds, relative_to="answer" if by_answer else "gold")


@with_answers(PROTOCOLS)
def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
    """``accuracy``, the mean of the halves among the items, and each half's own, in per cent; no judge is needed."""
    halves = [half for half in HALVES if any(item.reference["half"] == half for item, _ in asked)]
    tally = Tally(*halves)
    for item, text in asked:
        tally.add(right(item, text, protocol), item.reference["half"])
    found = tally.score("chartqa", items=len(asked), notes=empty_answers(asked))
    mean = sum(found.values.values()) / max(1, len(halves))
    error = math.hypot(*found.errors.values()) / max(1, len(halves))
    return replace(found, values={PRIMARY_METRIC: mean, **found.values}, errors={PRIMARY_METRIC: error, **found.errors})


def _row(half: str, number: int, question: str, answer: str | list[str]) -> dict[str, Any]:
    name = f"data/chartqa/ChartQA Dataset/test/png/{half}{number % 2}.png"
    return {"image": name, "question": question, "question_id": number, "answer": answer}


EXAMPLE = WorkedExample(
    files={
        "chartqa/test_human.jsonl": [
            _row("human", 0, "What share does the red bar have?", "12%"),
            _row("human", 1, "Which country is first?", "Côte d'Ivoire"),
            _row("human", 2, "In which years was it highest?", "[2001, 2003]"),
            _row("human", 3, "How many bars are grey?", "0"),
        ],
        "chartqa/test_augmented.jsonl": [
            _row("augmented", 0, "How many people were asked in 2016?", "1,200"),
            _row("augmented", 1, "What was the revenue in 2020?", "42"),
            _row("augmented", 2, "Which line is on top?", ["Total", "total"]),
        ],
    },
    images={
        f"chartqa/ChartQA Dataset/test/png/{half}{number}.png": ExampleImage(width=160, height=120, seed=number)
        for half in HALVES
        for number in (0, 1)
    },
    good=["0.12", " côte d'ivoire\n", "[2001, 2003]", "0", "1,200", "44.2", "TOTAL"],
    bad=["12", "Cote d'Ivoire", "2002", "0.0", "1200", "39.95", ""],
)
