"""GMAI-MMBench: medical images of many kinds, single choice and (where a file holds them) several right options.

Single choice is scored as VLMEvalKit does, rules first and a judge for what they leave; the paper prints four levels of
perception: contour (Seg C), mask (Seg M), image (2D Cls) and box (2D Det). For questions with several right options no
scorer and no data are public: by definition, the mean share of the answered options that are right
(``multi/accuracy``), and of the right ones that are answered (``multi/recall``); an empty answer has 0 of both.
Unusual: the paper calls its score a macro-average, but the formula and the scripts count right answers of all.

Files: ``GMAI-MMBench_VAL.tsv`` (or ``GMAI_mm_bench_VAL.tsv``), and for the test set, whose answers are not public, any
of ``GMAI_mm_bench_TEST_part_1.tsv`` to ``_11.tsv``. Column names may be in any case.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _choices, _vqa
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen, find, locate, read_tsv
from mini_internvl.benchmarks._tally import Asked, Judge, Tally, answers, with_answers
from mini_internvl.metrics.options import answered_letters, multi_answer
from mini_internvl.records import Item, Prediction, Score

TITLE = "GMAI-MMBench"
SPLITS = ("val", "test")
UNSCORED = ("test",)
PROTOCOLS = {
    "paper": "VLMEvalKit of October 2024: option inference, then a judge.",
    "vlmevalkit-head": "VLMEvalKit of today: stricter option inference.",
}
PRIMARY_METRIC = "accuracy"
VAL = ("GMAI-MMBench_VAL.tsv", "GMAI_mm_bench_VAL.tsv")
TEST = tuple(f"GMAI_mm_bench_TEST_part_{part}.tsv" for part in range(1, 12))
NEEDED = ("index", "image", "question", "A", "B")
GROUPS = {
    "task": "clinical vqa task",
    "department": "department",
    "granularity": "perceptual granularity",
    "modality": "modality",
}
"""Group of metrics -> column."""
MULTI_SUFFIX = "Several options may be right. Answer with the letters of all of them, separated by commas, such as A,B."


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question; an id that comes again gets its part's name before it; DataError says what is wrong."""
    split = chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    if split == "val":
        paths = [locate(root, "gmai_mmbench", VAL)]
    else:
        paths = [path for name in TEST if (path := find(root, "gmai_mmbench", [name]))]
        paths = paths or [locate(root, "gmai_mmbench", TEST[:1])]
    seen: set[str] = set()
    scored = split == "val"
    needed = (*NEEDED, "answer") if scored else NEEDED
    for path in paths:
        for row in read_tsv(path, needed, check=partial(_wrong, scored=scored), unique=True, rename=_column):
            name = row["index"] if row["index"] not in seen else f"{path.stem}/{row['index']}"
            seen.add(name)
            options, gold = _choices.row_options(row), _letters(row.get("answer", ""))
            text = _choices.choice_prompt(row, options)
            if len(gold) > 1:
                text = f"{text.rsplit(chr(10), 1)[0]}\n{MULTI_SUFFIX}"
            reference = {
                "question": row["question"],
                "options": options,
                "answer": gold,
                "labels": {group: row[column] for group, column in GROUPS.items() if row.get(column)},
                "file": path.stem,
                "sheet": {column: cell for column, cell in row.items() if column != "image"},
            }
            yield _vqa.ask(name, row["image"], text, reference, max_tiles=6, max_new_tokens=1024)


def _column(name: str) -> str:
    """A column in lower case, but for the options'."""
    return name if name in string.ascii_uppercase else name.lower()


def _wrong(row: dict[str, Any], *, scored: bool) -> Iterable[str]:
    if not _choices.row_options(row):
        yield "no options"
    elif scored and not _letters(row["answer"]):
        yield f'the answer "{row["answer"]}" is no letter'


def _letters(answer: str) -> list[str]:
    """The letters of a gold answer, such as ``A``, ``A,C`` or ``['A', 'C']``; none where it holds anything else."""
    letters = re.sub(r"[\s,;\[\]'\"]", "", answer)
    return list(dict.fromkeys(letters)) if set(letters) <= set(string.ascii_uppercase) else []


@with_answers(PROTOCOLS)
def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
    """``accuracy`` over single-choice questions, by ``task/``, ``department/``, ``granularity/`` and ``modality/``.

    ``multi/accuracy`` and ``multi/recall`` are over the questions with several right options, if there are any. Names
    of granularities are in lower case (``granularity/contour level`` is the paper's Seg C). Notes: ``undecided`` single
    choices that wait for a judge, ``multi`` questions.
    """
    tally = Tally("accuracy")
    undecided = multi = 0
    for item, text in asked:
        if len(item.reference["answer"]) > 1:
            multi += 1
            accuracy, recall = _shares(item, text)
            tally.add(accuracy, "multi/accuracy")
            tally.add(recall, "multi/recall")
            continue
        choice = _choices.choose(item, text, version=_choices.PAPER_VERSIONS[protocol], judge=judge)
        undecided += choice.undecided
        labels = item.reference["labels"].items()
        metrics = [f"{group}/{name.lower() if group == 'granularity' else name}" for group, name in labels]
        tally.add([choice.letter] == item.reference["answer"], "accuracy", *metrics)
    partial = _choices.lower_bound(0 if judge else undecided, len(asked) - multi)
    notes = {"undecided": undecided, "multi": multi}
    return tally.score("gmai_mmbench", items=len(asked), notes=notes, partial=partial)


def _shares(item: Item, text: str) -> tuple[float, float]:
    return multi_answer(answered_letters(text, item.reference["options"]), item.reference["answer"])


def right(item: Item, text: str, protocol: str = "paper") -> bool:
    """Whether an answer is right by a protocol's rules without a judge; of several right options all and no other."""
    if len(item.reference["answer"]) > 1:
        return _shares(item, text) == (1.0, 1.0)
    choice = _choices.choose(item, text, version=_choices.PAPER_VERSIONS[protocol], judge=None)
    return [choice.letter] == item.reference["answer"]


def export(items: Iterable[Item], predictions: Iterable[Prediction], folder: Path) -> list[Path]:
    """One sheet a part as VLMEvalKit writes it, without the image, prediction last; DataError without openpyxl."""
    return _choices.export_sheets(answers(items, predictions), folder)


def _row(index: int, options: str, answer: str, granularity: str, **more: str) -> dict[str, Any]:
    """A row of a table, for the example; the options have bars between."""
    row = {
        "index": index,
        "image": ExampleImage(seed=index),
        "question": "Which finding is shown in the marked region?",
        **dict(zip("ABCDE", [*options.split("|"), *[""] * 5], strict=False)),
        "answer": answer,
        "category": "finding",
        "l2-category": "medical",
        "split": "val",
        "modality": "CT",
        "clinical vqa task": "disease diagnosis",
        "department": "ophthalmology",
        "perceptual granularity": granularity,
    }
    if not answer:
        del row["answer"]
    return row | more


EXAMPLE = WorkedExample(
    files={
        VAL[0]: [
            _row(1, "nerve|vessel", "B", "Contour Level", **{"clinical vqa task": "nervous tissue"}),
            _row(2, "mild|moderate|severe", "A", "Mask Level", modality="MR"),
            _row(3, "cataract|None|glaucoma|NA", "D", "Image Level"),
            _row(4, "肺炎|正常", "A", "Box Level", question="图中显示的是什么？", department="pulmonary medicine"),
            _row(5, "cyst|≥ 2 mm|clip|scar|stent", "B", "Mask Level", modality="X-ray"),
            _row(6, "drusen|bleeding|scar|oedema", "A,C", "Image Level", category="several"),
            _row(7, "left|right|both", "['B', 'C']", "Image Level", category="several"),
        ],
        TEST[0]: [_row(4551, "yes|no", "", "Box Level", split="test")],
        TEST[10]: [_row(25831, "a|=b", "", "Box Level", split="test")],
    },
    good=["B", "(A)", "D", "A. 肺炎", "The answer is B.", "A, C", "C,B"],
    bad=["A", "", "None of these", "B", "stent", "B", "A"],
    judge={"Answer: nan\n": "Z"},
)
