"""MMMU (validation): college questions with images from 30 subjects, as choices and with open answers.

The paper's number is the OpenCompass board's, that is VLMEvalKit's: up to 12 tiles an image, open questions scored as
a choice between the gold text and "Other Answers", rules first and a judge for what they leave. ``internvl`` is the
InternVL repository's own script, which gives a few points less. Rules and traps: :mod:`mini_internvl.metrics.mmmu`.
Unusual: both enlarge the first image to twice its size before it is cut. With several images VLMEvalKit gives each
up to 12 tiles (64 for all), InternVL's script 6 to the first and one to each other; there all tiles share one
placeholder, here each image has its own. The text keeps ``<image 1>``, as in the original.
Of an open answer the gold text counts wherever it stands, so "18" is right in "180 or 18".

Files: VLMEvalKit's ``MMMU_DEV_VAL.tsv``, whose image cells hold lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _choices, _vqa
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen, locate, read_tsv
from mini_internvl.benchmarks._tally import Asked, Judge, Tally, with_answers
from mini_internvl.metrics import mmmu as metric
from mini_internvl.metrics.list_text import read_list
from mini_internvl.metrics.options import internvl_answer
from mini_internvl.records import Item, Score

TITLE = "MMMU"
SPLITS = ("val", "dev")
PROTOCOLS = {
    "paper": "VLMEvalKit of October 2024: option inference, then a judge; 12 tiles an image.",
    "vlmevalkit-head": "VLMEvalKit of today: as the paper's, with stricter option inference.",
    "internvl": "InternVL's script: its own rule for letters, MMMU's parser for open answers; 6 tiles, 10 tokens.",
    "official": "MMMU's own parsers, a drawn letter where they find none; asked as InternVL's script does.",
}
PRIMARY_METRIC = "accuracy"
TABLE = "MMMU_DEV_VAL.tsv"
COLUMNS = ("index", "image", "question", "A", "B", "answer", "category", "split")
SPLIT_CELLS = {"val": ("val", "validation"), "dev": ("dev",)}
TILES, ALL_TILES, SCRIPT_TILES = 12, 64, 6
_DOMAIN = {subject: domain for domain, subjects in metric.DOMAINS.items() for subject in subjects}


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question of the split, ids are VLMEvalKit's indices; DataError names what is wrong with the file."""
    cells = SPLIT_CELLS[chosen("split", split, SPLITS)]
    kind = chosen("protocol", protocol, PROTOCOLS)
    rows = read_tsv(locate(root, "mmmu", [TABLE]), COLUMNS, check=_wrong, unique=True)
    for row in rows:
        if row["split"] in cells:
            yield _item(row, kind)


def _wrong(row: Mapping[str, str]) -> Iterable[str]:
    if not row["answer"]:
        yield "no answer"


def _item(row: Mapping[str, Any], protocol: str) -> Item:
    options = _choices.row_options(row)
    number = len(row["image"])
    parts: list[Any] = [{"type": "image", "image": image} for image in row["image"]]
    parts[:1] = [{**part, "scale": 2} for part in parts[:1]]
    script = protocol not in _choices.PAPER_VERSIONS
    if script:
        options = {letter: text.strip() for letter, text in options.items()}
        lines = [row["question"].strip(), *(f"{letter}. {text}" for letter, text in options.items())]
        text = "\n".join([*lines, _choices.SUFFIX if options else _vqa.SENTENCE])
        parts[1:] = [{**part, "max_tiles": 1} for part in parts[1:]]
        limit = SCRIPT_TILES
    else:
        text = _choices.choice_prompt(row, options)
        limit = max(1, min(TILES, ALL_TILES // max(1, number)))
    reference = {
        "question": row["question"],
        "options": options,
        "answer": row["answer"],
        "subject": row["category"],
        "domain": row.get("l2-category") or _DOMAIN.get(row["category"], ""),
    }
    most = limit * max(1, number)  # the engine shares it out among the images
    return _vqa.ask(row["index"], parts, text, reference, max_tiles=most, max_new_tokens=10 if script else 1024)


@with_answers(PROTOCOLS)
def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
    """``accuracy``, ``domain/...`` and ``subject/...``, in per cent.

    Notes: ``undecided`` answers that wait for a judge (paper, vlmevalkit-head); ``random``, letters that were drawn
    (official); ``unreadable``, empty choices on which the script stops, counted as wrong (internvl). The last two
    protocols have InternVL's report as ``report``, rounded to three decimals.
    """
    tally = Tally("accuracy")
    rows, flagged = [], 0
    for item, text in asked:
        hit, flag = _decide(item, text, protocol, judge)
        labels = [f"{label}/{item.reference[label]}" for label in ("domain", "subject") if item.reference[label]]
        tally.add(hit, "accuracy", *labels)
        rows.append((item.reference["subject"], hit))
        flagged += flag
    notes: dict[str, Any] = {"undecided": flagged}
    partial = ""
    if protocol in _choices.PAPER_VERSIONS:
        partial = _choices.lower_bound(0 if judge else flagged, len(asked))
    else:
        notes = {"random" if protocol == "official" else "unreadable": flagged, "report": metric.report(rows)}
    return tally.score("mmmu", items=len(asked), notes=notes, partial=partial)


def _decide(item: Item, text: str, protocol: str, judge: Judge | None) -> tuple[bool, bool]:
    """Whether an answer is right, and whether it is one of those that the notes count."""
    options, gold = item.reference["options"], item.reference["answer"]
    if protocol in _choices.PAPER_VERSIONS:
        options, letter = metric.as_choice(options, gold)
        choice = _choices.choose(item, text, version=_choices.PAPER_VERSIONS[protocol], judge=judge, options=options)
        return choice.letter == letter, choice.undecided
    if not options:
        return metric.open_right(metric.parse_open(text), _golds(gold)), False
    if protocol == "internvl":
        answer = internvl_answer(text, {letter: option.strip() for letter, option in options.items()})
        return answer == gold, answer is None
    parsed = metric.parse_choice(text, options)
    return (parsed or metric.drawn_letter(item.id, options)) == gold, parsed is None


def _golds(answer: str) -> list[str]:
    """The gold texts of an open question; several are written as a Python list."""
    golds = read_list(answer) if answer.startswith("[") else None
    return golds if golds is not None and _vqa.are_texts(golds) else [answer]


def right(item: Item, text: str, protocol: str = "paper") -> bool:
    """Whether an answer is right by a protocol's rules without a judge."""
    return _decide(item, text, protocol, None)[0]


def _row(index: int, question: str, options: str, answer: str, subject: str, **more: Any) -> dict[str, Any]:
    """A row of the table, for the example; the options have bars between."""
    return {
        "index": index,
        "question": question,
        "hint": "",
        **dict(zip("ABCDE", [*options.split("|"), *[""] * 5], strict=False)),
        "answer": answer,
        "image": ExampleImage(seed=index),
        "category": subject,
        "l2-category": _DOMAIN[subject],
        "split": "validation",
        "question_type": "multiple-choice" if options else "open",
    } | more


_TWO = [ExampleImage(seed=2), ExampleImage(seed=3)]
EXAMPLE = WorkedExample(
    files={
        TABLE: [
            _row(1, "What changes in <image 1>?", "demand|supply|nothing", "A", "Economics"),
            _row(2, "Which of <image 1> and <image 2> is larger?", "<image 1>|<image 2>", "B", "Art", image=_TWO),
            _row(3, "How many discs are in <image 1>?", "", "18", "Math"),
            _row(4, "Which organelle? <image 1>", "", "Mitochondria", "Biology"),
            _row(5, "Wie heißt das? <image 1>", "π|None|NA|½|∞", "E", "Physics"),
            _row(6, "Where is <image 1>?", "left|right", "A", "History", split="dev"),
        ]
    },
    good=["A", "B.", "18", "the mitochondria", "(E) ∞"],
    bad=["", "A", "Other Answers", "ribosome", "π"],
    judge={"Answer: nan\n": "Z", "Answer: ribosome\n": "B"},
)
