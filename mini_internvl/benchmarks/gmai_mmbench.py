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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._choices import (
    Choice,
    Judge,
    choice_prompt,
    choose,
    open_rules,
    options_of,
    row_options,
    user_message,
    whole_number,
    write_xlsx,
)
from mini_internvl.benchmarks._example import Example, ExampleImage
from mini_internvl.benchmarks._files import Faults, chosen, locate, read_tsv, tsv_images
from mini_internvl.benchmarks._tally import Tally, answers
from mini_internvl.data import DataError
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
LOWER_IS_BETTER: frozenset[str] = frozenset()
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
_VERSIONS = {"paper": "2024-10", "vlmevalkit-head": "head"}


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, ids are the files' indices; an index that comes again gets its part's name before it.

    Raises:
        DataError: no file of the split is there, or rows are damaged.
    """
    split = chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    seen: set[str] = set()
    for path in _paths(root, split):
        rows = _read(path, answered=split == "val")
        for row, images in zip(rows, tsv_images(path, rows), strict=True):
            name = row["index"] if row["index"] not in seen else f"{path.stem}/{row['index']}"
            seen.add(name)
            options, gold = row_options(row), _letters(row.get("answer", ""))
            text = choice_prompt(row, options)
            if len(gold) > 1:
                text = f"{text.rsplit(chr(10), 1)[0]}\n{MULTI_SUFFIX}"
            yield Item(
                id=name,
                messages=user_message(({"type": "image", "image": image} for image in images), text),
                reference={
                    "question": row["question"],
                    "options": options,
                    "answer": gold,
                    "labels": {group: row[column] for group, column in GROUPS.items() if row.get(column)},
                    "file": path.stem,
                    "sheet": {column: cell for column, cell in row.items() if column != "image"},
                },
                max_tiles=6,
                max_new_tokens=1024,
            )


def _paths(root: str | Path, split: str) -> list[Path]:
    """The file of VAL under either name, or those parts of TEST that are there."""
    names = VAL if split == "val" else TEST
    found = []
    for name in names:
        try:
            found += locate(root, "gmai_mmbench", name)
        except DataError:
            continue
    return (found[:1] if split == "val" else found) or locate(root, "gmai_mmbench", names[0])


def _read(path: Path, *, answered: bool) -> list[dict[str, str]]:
    """The rows, their column names in lower case but for the options'; checked."""
    rows = [
        {name if name in string.ascii_uppercase else name.lower(): cell for name, cell in row.items()}
        for row in read_tsv(path, ())
    ]
    needed = (*NEEDED, "answer") if answered else NEEDED
    missing = [name for name in needed if rows and name not in rows[0]]
    if missing or not rows:
        what = f"the header has no column {', '.join(missing)}" if missing else "there are no rows"
        raise DataError(f"{path}: {what}; is it the official tab-separated file?")
    faults = Faults(path)
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if row["index"] in seen:
            faults.add(number, f"the index {row['index']} is there twice")
        seen.add(row["index"])
        if not row_options(row):
            faults.add(number, "no options")
        elif answered and not _letters(row["answer"]):
            faults.add(number, f'the answer "{row["answer"]}" is no letter')
    faults.check()
    return rows


def _letters(answer: str) -> list[str]:
    """The letters of a gold answer, such as ``A``, ``A,C`` or ``['A', 'C']``; none where it holds anything else."""
    letters = re.sub(r"[\s,;\[\]'\"]", "", answer)
    return list(dict.fromkeys(letters)) if set(letters) <= set(string.ascii_uppercase) else []


def score(
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Judge | None = None,
) -> Score:
    """``accuracy`` over single-choice questions, by ``task/``, ``department/``, ``granularity/`` and ``modality/``.

    ``multi/accuracy`` and ``multi/recall`` are over the questions with several right options, if there are any. Names
    of granularities are in lower case (``granularity/contour level`` is the paper's Seg C). Notes: ``undecided`` single
    choices that wait for a judge, ``multi`` questions.
    """
    version = _VERSIONS[chosen("protocol", protocol, PROTOCOLS)]
    asked = list(items)
    texts = answers(asked, predictions)
    tally = Tally()
    tally.results = {"accuracy": []}
    undecided = multi = 0
    for item in asked:
        if len(item.reference["answer"]) > 1:
            multi += 1
            accuracy, recall = _shares(item, texts[item.id])
            tally.add(accuracy, "multi/accuracy")
            tally.add(recall, "multi/recall")
            continue
        choice = _choice(item, texts[item.id], version, judge)
        undecided += choice.undecided
        tally.add([choice.letter] == item.reference["answer"], "accuracy", *_tally(item.reference["labels"]))
    partial = open_rules(0 if judge else undecided, len(asked) - multi)
    notes = {"undecided": undecided, "multi": multi}
    return tally.score("gmai_mmbench", items=len(asked), notes=notes, partial=partial)


def _choice(item: Item, text: str, version: str, judge: Judge | None) -> Choice:
    return choose(item.reference["question"], options_of(item), text, version=version, judge=judge)


def _shares(item: Item, text: str) -> tuple[float, float]:
    return multi_answer(answered_letters(text, options_of(item)), item.reference["answer"])


def _tally(labels: Mapping[str, str]) -> list[str]:
    return [f"{group}/{name.lower() if group == 'granularity' else name}" for group, name in labels.items()]


def right(item: Item, text: str) -> bool:
    """Whether an answer is right by the paper's rules without a judge; of several right options all and no other."""
    if len(item.reference["answer"]) > 1:
        return _shares(item, text) == (1.0, 1.0)
    return [_choice(item, text, "2024-10", None).letter] == item.reference["answer"]


def export(items: Iterable[Item], predictions: Iterable[Prediction], folder: Path) -> list[Path]:
    """One sheet for each part, as VLMEvalKit writes them: every column but the image, the prediction last.

    Raises:
        DataError: openpyxl is not installed.
    """
    asked = list(items)
    texts = answers(asked, predictions)
    files: dict[str, list[dict[str, Any]]] = {}
    for item in asked:
        cells = {**item.reference["sheet"], "prediction": texts[item.id]}
        cells["index"] = whole_number(cells["index"])
        files.setdefault(item.reference["file"], []).append(cells)
    return [write_xlsx(Path(folder) / f"{name}.xlsx", list(rows[0]), rows) for name, rows in files.items()]


def _row(index: int, options: Sequence[str], answer: str, granularity: str, **more: str) -> dict[str, Any]:
    """A row of a table, for the example."""
    return {
        "index": index,
        "image": ExampleImage(seed=index),
        "question": more.get("question", "Which finding is shown in the marked region?"),
        **dict(zip("ABCDE", [*options, *[""] * 5], strict=False)),
        "answer": answer,
        "category": more.get("category", "finding"),
        "l2-category": "medical",
        "split": more.get("split", "val"),
        "modality": more.get("modality", "CT"),
        "clinical vqa task": more.get("task", "disease diagnosis"),
        "department": more.get("department", "ophthalmology"),
        "perceptual granularity": granularity,
    }


EXAMPLE = Example(
    files={
        VAL[0]: [
            _row(1, ["nerve", "vessel"], "B", "Contour Level", task="nervous tissue"),
            _row(2, ["mild", "moderate", "severe"], "A", "Mask Level", task="severity grading", modality="MR"),
            _row(3, ["cataract", "None", "glaucoma", "NA"], "D", "Image Level"),
            _row(4, ["肺炎", "正常"], "A", "Box Level", question="图中显示的是什么？", department="pulmonary medicine"),
            _row(5, ["cyst", "≥ 2 mm", "clip", "scar", "stent"], "B", "Mask Level", modality="X-ray"),
            _row(6, ["drusen", "bleeding", "scar", "oedema"], "A,C", "Image Level", category="several"),
            _row(7, ["left", "right", "both"], "['B', 'C']", "Image Level", category="several"),
        ],
        TEST[0]: [{k: v for k, v in _row(4551, ["yes", "no"], "", "Box Level", split="test").items() if k != "answer"}],
        TEST[10]: [{k: v for k, v in _row(25831, ["a", "=b"], "", "Box Level", split="test").items() if k != "answer"}],
    },
    good=["B", "(A)", "D", "A. 肺炎", "The answer is B.", "A, C", "C,B"],
    bad=["A", "", "None of these", "B", "stent", "B", "A"],
    judge={"Answer: nan\n": "Z"},
)
