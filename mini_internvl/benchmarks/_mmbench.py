"""What MMBench in English and in Chinese share: files, prompt, circular evaluation, export.

A question is asked once for every rotation of its options, and counts only if every rotation is right; metrics count
questions, under the labels of their first row. The development sets are scored here, the test sets by MMBench's server,
which takes the exported sheet.
Unusual: the paper's answers went through InternVL's own rule before the server read them, so "Answer: B" is A; an empty
answer, on which that script stops, is read as "nan".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._choices import (
    VERSIONS,
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
from mini_internvl.metrics.options import CYCLE, Rotation, circular_hits, internvl_answer
from mini_internvl.records import Item, Prediction, Score

SPLITS = ("dev", "test")
UNSCORED = ("test",)
PROTOCOLS = {
    "paper": "InternVL's script: its own rule cuts the answer to a letter, then circular evaluation.",
    "vlmevalkit-2024-10": "VLMEvalKit of October 2024: option inference, then circular evaluation.",
    "vlmevalkit-head": "VLMEvalKit of today: stricter option inference.",
}
PRIMARY_METRIC = "accuracy"
LOWER_IS_BETTER: frozenset[str] = frozenset()
ABILITIES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
"""Name in the files -> name in papers."""
LETTERS = "ABCDE"
DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")
"""Columns that the server's sheet lacks."""
PLACE = 6
"""Columns before the prediction in the server's sheet."""


def read_items(
    benchmark: str,
    files: Mapping[str, str],
    chinese: bool,
    root: str | Path,
    split: str | None = None,
    *,
    protocol: str | None = None,
) -> Iterator[Item]:
    """One item a rotation, ids are the rows' indices.

    Args:
        benchmark: its folder below ``root``.
        files: split -> name of the table.
        chinese: the language of the last sentence of the paper's prompt; VLMEvalKit's goes by the question.
        root: the data folder.
        split: ``"dev"`` has answers, ``"test"`` has none.
        protocol: one of PROTOCOLS.

    Raises:
        DataError: the table is missing, or rows are damaged.
    """
    split, protocol = chosen("split", split, SPLITS), chosen("protocol", protocol, PROTOCOLS)
    language = chinese if protocol == "paper" else None
    (path,) = locate(root, benchmark, files[split])
    needed = ("index", "image", "question", "A", "B", *(("answer",) if split == "dev" else ()))
    rows = read_tsv(path, needed)
    faults = Faults(path)
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if not isinstance(whole_number(row["index"]), int):
            faults.add(number, f'the index "{row["index"]}" is no whole number')
        elif row["index"] in seen:
            faults.add(number, f"the index {row['index']} is there twice")
        seen.add(row["index"])
        options = row_options(row, LETTERS)
        if not options:
            faults.add(number, "no options")
        elif split == "dev" and row["answer"] not in set(LETTERS):
            faults.add(number, f'the answer "{row["answer"]}" is none of the letters {LETTERS[0]} to {LETTERS[-1]}')
    faults.check()
    for row, images in zip(rows, tsv_images(path, rows), strict=True):
        options = row_options(row, LETTERS)
        text = choice_prompt(row, options, chinese=language)
        yield Item(
            id=row["index"],
            messages=user_message(({"type": "image", "image": image} for image in images), text),
            reference=_truth(row, options, path.stem),
            max_tiles=6,
            max_new_tokens=100,
        )


def together(item: Item) -> str:
    """Names the question that a rotation belongs to; its rotations count together."""
    return str(int(item.reference["index"]) % CYCLE)


def _truth(row: Mapping[str, str], options: Mapping[str, str], file: str) -> dict[str, Any]:
    ability = row.get("l2-category", "")
    return {
        "index": int(row["index"]),
        "question": row["question"],
        "options": dict(options),
        "answer": row.get("answer", ""),
        "category": row.get("category", ""),
        "ability": ABILITIES.get(ability, ability),
        "file": file,
        "sheet": {column: cell for column, cell in row.items() if column not in DROPPED},
    }


def _read(item: Item, text: str, protocol: str, judge: Judge | None) -> Choice:
    options = options_of(item)
    if protocol == "paper":
        text = internvl_answer(text, options) or ""
    return choose(item.reference["question"], options, text, version=VERSIONS.get(protocol, "head"), judge=judge)


def score_items(
    benchmark: str,
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Judge | None = None,
) -> Score:
    """``accuracy``, ``ability/CP`` ... ``ability/AR``, ``category/...``, over questions.

    Notes: ``undecided`` answers, which count as misses without a judge; ``incomplete`` questions, which have fewer
    rotations than options and are easier for it; ``no_first_row``, rows that are left out because their question's
    first row is missing.
    """
    kind = chosen("protocol", protocol, PROTOCOLS)
    asked = list(items)
    texts = answers(asked, predictions)
    by_index = {item.reference["index"]: item for item in asked}
    readings = {item.id: _read(item, texts[item.id], kind, None) for item in asked}
    rotations = [
        Rotation(
            index=item.reference["index"],
            gold=item.reference["answer"],
            inferred=None if readings[item.id].undecided else readings[item.id].letter,
        )
        for item in asked
    ]

    def ask(rotation: Rotation) -> str:
        item = by_index[rotation.index]
        return _read(item, texts[item.id], kind, judge).letter

    hits = circular_hits(rotations, ask if judge else None)
    tally = Tally()
    tally.results = {"accuracy": []}
    for group, hit in hits.items():
        reference = by_index[group].reference
        labels = [f"{name}/{reference[name]}" for name in ("ability", "category") if reference[name]]
        tally.add(hit, "accuracy", *labels)
    waiting = _waiting(rotations)
    counts: dict[int, int] = {}
    for rotation in rotations:
        counts[rotation.group] = counts.get(rotation.group, 0) + 1
    notes = {
        "undecided": sum(reading.undecided for reading in readings.values()),
        "incomplete": sum(counts[group] < len(by_index[group].reference["options"]) for group in hits),
        "no_first_row": sum(number for group, number in counts.items() if group not in hits),
    }
    partial = "" if judge else open_rules(len(waiting & hits.keys()), len(hits), "questions")
    return tally.score(benchmark, items=len(asked), notes=notes, partial=partial)


def _waiting(rotations: Iterable[Rotation]) -> set[int]:
    """Questions that only undecided answers keep from being right."""
    wrong, undecided = set(), set()
    for rotation in rotations:
        if rotation.inferred is None:
            undecided.add(rotation.group)
        elif rotation.inferred != rotation.gold:
            wrong.add(rotation.group)
    return undecided - wrong


def right(item: Item, text: str) -> bool:
    """Whether one row's answer is right by the paper's rule without a judge; the metrics need every rotation."""
    return _read(item, text, "paper", None).letter == item.reference["answer"]


def export(items: Iterable[Item], predictions: Iterable[Prediction], folder: Path) -> list[Path]:
    """The sheet for MMBench's server, as InternVL's script writes it: ``FILE.xlsx``, prediction in the seventh column.

    Raises:
        DataError: openpyxl is not installed.
    """
    asked = list(items)
    texts = answers(asked, predictions)
    files: dict[str, list[dict[str, Any]]] = {}
    for item in asked:
        cells = dict(item.reference["sheet"])
        cells["index"] = whole_number(cells["index"])
        cells["prediction"] = internvl_answer(texts[item.id], options_of(item)) or ""
        files.setdefault(item.reference["file"], []).append(cells)
    written = []
    for name, rows in files.items():
        columns = [column for column in rows[0] if column != "prediction"]
        columns.insert(PLACE, "prediction")
        written.append(write_xlsx(Path(folder) / f"{name}.xlsx", columns, rows))
    return written


@dataclass(frozen=True)
class Question:
    """A question of the worked examples; its first option is right."""

    index: int
    question: str
    options: Sequence[str]
    ability: str
    category: str
    hint: str = ""


def example(dev: str, test: str, questions: Sequence[Question], bad: Sequence[str]) -> Example:
    """Both files in small, every question in all rotations; ``bad`` has a wrong answer for each row of ``dev``."""
    rows = [_row(question, k) for k in range(4) for question in questions if k < len(question.options)]
    return Example(
        files={
            dev: [{**row, "split": "dev"} for row in rows],
            test: [{**{k: v for k, v in row.items() if k != "answer"}, "split": "test"} for row in rows[:3]],
        },
        good=[row["answer"] for row in rows],
        bad=bad,
    )


def _row(question: Question, turn: int) -> dict[str, Any]:
    """One rotation: every option moves up by ``turn`` places."""
    turned = [*question.options[turn:], *question.options[:turn]]
    cells = dict(zip("ABCD", turned + [""] * 4, strict=False))
    return {
        "index": question.index + turn * CYCLE,
        "question": question.question,
        "hint": question.hint,
        **cells,
        "answer": "ABCD"[turned.index(question.options[0])],
        "category": question.category,
        "image": ExampleImage(seed=question.index),
        "source": "drawn",
        "l2-category": question.ability,
        "comment": "",
    }
