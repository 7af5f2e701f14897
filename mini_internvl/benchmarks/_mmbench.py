"""What MMBench in English and in Chinese share: files, prompt, circular evaluation, export.

A question is asked once for every rotation of its options, and counts only if every rotation is right; metrics count
questions, under the labels of their first row. The development sets are scored here, the test sets by MMBench's server,
which takes the exported sheet.
Unusual: the paper's answers went through InternVL's own rule before the server read them, so "Answer: B" is A; an empty
answer, on which that script stops, is read as "nan".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _choices, _vqa
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen, locate, read_tsv
from mini_internvl.benchmarks._tally import Asked, Judge, Tally, answers, with_answers
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
DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")  # columns that the server's sheet lacks
PLACE = 6  # columns before the prediction in the server's sheet


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
    path = locate(root, benchmark, [files[split]])
    needed = ("index", "image", "question", "A", "B", *(("answer",) if split == "dev" else ()))
    for row in read_tsv(path, needed, check=partial(_wrong, scored=split == "dev"), unique=True):
        options = _choices.row_options(row, LETTERS)
        text = _choices.choice_prompt(row, options, chinese=language)
        ability = row.get("l2-category", "")
        reference = {
            "index": int(row["index"]),
            "question": row["question"],
            "options": options,
            "answer": row.get("answer", ""),
            "category": row.get("category", ""),
            "ability": ABILITIES.get(ability, ability),
            "file": path.stem,
            "sheet": {column: cell for column, cell in row.items() if column not in DROPPED},
        }
        yield _vqa.ask(row["index"], row["image"], text, reference, max_tiles=6, max_new_tokens=100)


def _wrong(row: Mapping[str, str], *, scored: bool) -> Iterable[str]:
    if not isinstance(_choices.whole_number(row["index"]), int):
        yield f'the index "{row["index"]}" is no whole number'
    if not _choices.row_options(row, LETTERS):
        yield "no options"
    elif scored and row["answer"] not in set(LETTERS):
        yield f'the answer "{row["answer"]}" is none of the letters {LETTERS[0]} to {LETTERS[-1]}'


def together(item: Item) -> str:
    """Names the question that a rotation belongs to; its rotations count together."""
    return str(int(item.reference["index"]) % CYCLE)


def _choose(item: Item, text: str, protocol: str, judge: Judge | None) -> _choices.Choice:
    if protocol == "paper":
        text = internvl_answer(text, item.reference["options"]) or ""
    return _choices.choose(item, text, version=_choices.VERSIONS.get(protocol, "head"), judge=judge)


def make_score(benchmark: str) -> Callable[..., Score]:
    """The ``score`` of a benchmark."""

    @with_answers(PROTOCOLS)
    def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
        """``accuracy``, ``ability/CP`` ... ``ability/AR``, ``category/...``, over questions.

        Notes: ``undecided`` answers, which count as misses without a judge; ``incomplete`` questions, which have fewer
        rotations than options and are easier for it; ``no_first_row``, rows that are left out because their question's
        first row is missing.
        """
        rows = {item.reference["index"]: (item, text) for item, text in asked}
        choices = {item.reference["index"]: _choose(item, text, protocol, None) for item, text in asked}
        rotations = [
            Rotation(
                index=index,
                gold=rows[index][0].reference["answer"],
                inferred=None if choice.undecided else choice.letter,
            )
            for index, choice in choices.items()
        ]

        def ask(row: Rotation) -> str:
            return _choose(*rows[row.index], protocol, judge).letter

        hits = circular_hits(rotations, ask if judge else None)
        tally = Tally("accuracy")
        incomplete = 0
        counts = Counter(rotation.group for rotation in rotations)
        for group, hit in hits.items():
            reference = rows[group][0].reference
            incomplete += counts[group] < len(reference["options"])
            labels = [f"{name}/{reference[name]}" for name in ("ability", "category") if reference[name]]
            tally.add(hit, "accuracy", *labels)
        wrong = {row.group for row in rotations if row.inferred not in (None, row.gold)}
        undecided = {row.group for row in rotations if row.inferred is None}
        notes = {
            "undecided": sum(choice.undecided for choice in choices.values()),
            "incomplete": incomplete,
            "no_first_row": sum(number for group, number in counts.items() if group not in hits),
        }
        waiting = 0 if judge else len((undecided - wrong) & hits.keys())
        partial = _choices.lower_bound(waiting, len(hits), "questions")
        return tally.score(benchmark, items=len(asked), notes=notes, partial=partial)

    return score


def right(item: Item, text: str, protocol: str = "paper") -> bool:
    """Whether one row's answer is right by a protocol's rule without a judge; the metrics need every rotation."""
    return _choose(item, text, protocol, None).letter == item.reference["answer"]


def export(items: Iterable[Item], predictions: Iterable[Prediction], folder: Path) -> list[Path]:
    """The sheet ``FILE.xlsx`` for MMBench's server, as InternVL's script writes it; DataError without openpyxl."""
    asked = answers(items, predictions)
    cut = [(item, internvl_answer(text, item.reference["options"]) or "") for item, text in asked]
    return _choices.export_sheets(cut, folder, PLACE)


def example(files: Mapping[str, str], questions: Sequence[tuple[str, ...]], bad: str) -> WorkedExample:
    """Both files in small, every question in all rotations.

    Args:
        files: split -> name of the table.
        questions: of each its ability, then question and options with bars between, the right option first, and
            perhaps a hint.
        bad: a wrong answer for each row of the development set, with bars between.
    """
    asked = list(zip((0, 1, 7, 12), questions, strict=True))
    rows = [row for turn in range(4) for index, question in asked for row in _rotation(index, turn, *question)]
    test = [{name: cell for name, cell in row.items() if name != "answer"} for row in rows[:3]]
    return WorkedExample(
        files={
            files["dev"]: [{**row, "split": "dev"} for row in rows],
            files["test"]: [{**r, "split": "test"} for r in test],
        },
        good=[row["answer"] for row in rows],
        bad=bad.split("|"),
    )


def _rotation(index: int, turn: int, ability: str, text: str, hint: str = "") -> Iterator[dict[str, Any]]:
    """The row in which every option has moved up by ``turn`` places, if there are so many options."""
    question, *options = text.split("|")
    if turn < len(options):
        turned = [*options[turn:], *options[:turn]]
        yield {
            "index": index + turn * CYCLE,
            "question": question,
            "hint": hint,
            **dict(zip("ABCD", [*turned, "", ""], strict=False)),
            "answer": "ABCD"[turned.index(options[0])],
            "category": f"category {index % 2}",
            "image": ExampleImage(seed=index),
            "source": "drawn",
            "l2-category": ability,
            "comment": "",
        }
