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

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._choices import (
    SUFFIX,
    Choice,
    Judge,
    choice_prompt,
    choose,
    open_rules,
    options_of,
    row_options,
    user_message,
)
from mini_internvl.benchmarks._example import Example, ExampleImage
from mini_internvl.benchmarks._files import Faults, TableImage, chosen, locate, read_tsv, tsv_images
from mini_internvl.benchmarks._tally import Tally, answers
from mini_internvl.metrics import mmmu as metric
from mini_internvl.metrics.options import internvl_answer
from mini_internvl.records import Item, Part, Prediction, Score

TITLE = "MMMU"
SPLITS = ("val", "dev")
PROTOCOLS = {
    "paper": "VLMEvalKit of October 2024: option inference, then a judge; 12 tiles an image.",
    "vlmevalkit-head": "VLMEvalKit of today: as the paper's, with stricter option inference.",
    "internvl": "InternVL's script: its own rule for letters, MMMU's parser for open answers; 6 tiles, 10 tokens.",
    "official": "MMMU's own parsers, a drawn letter where they find none; asked as InternVL's script does.",
}
PRIMARY_METRIC = "accuracy"
LOWER_IS_BETTER: frozenset[str] = frozenset()
TABLE = "MMMU_DEV_VAL.tsv"
COLUMNS = ("index", "image", "question", "A", "B", "answer", "category", "split")
SPLIT_CELLS = {"val": ("val", "validation"), "dev": ("dev",)}
OPEN_SUFFIX = "Answer the question using a single word or phrase."
TILES, ALL_TILES, SCRIPT_TILES = 12, 64, 6
_VERSIONS = {"paper": "2024-10", "vlmevalkit-head": "head"}
_DOMAIN = {subject: domain for domain, subjects in metric.DOMAINS.items() for subject in subjects}


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question of the split, ids are VLMEvalKit's indices; DataError names what is wrong with the file."""
    cells = SPLIT_CELLS[chosen("split", split, SPLITS)]
    kind = chosen("protocol", protocol, PROTOCOLS)
    (path,) = locate(root, "mmmu", TABLE)
    rows = read_tsv(path, COLUMNS)
    faults = Faults(path)
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if row["index"] in seen:
            faults.add(number, f"the index {row['index']} is there twice")
        seen.add(row["index"])
        if not row["answer"]:
            faults.add(number, "no answer")
    faults.check()
    for row, images in zip(rows, tsv_images(path, rows), strict=True):
        if row["split"] in cells:
            yield _item(row, images, kind)


def _item(row: Mapping[str, str], images: Sequence[TableImage], protocol: str) -> Item:
    options = row_options(row)
    script = protocol not in _VERSIONS
    if script:
        options = {letter: text.strip() for letter, text in options.items()}
        lines = [row["question"].strip(), *(f"{letter}. {text}" for letter, text in options.items())]
        text = "\n".join([*lines, SUFFIX if options else OPEN_SUFFIX])
        limit = SCRIPT_TILES
    else:
        text = choice_prompt(row, options)
        limit = max(1, min(TILES, ALL_TILES // max(1, len(images))))
    parts: list[Part] = [{"type": "image", "image": image} for image in images]
    parts[:1] = [{**part, "scale": 2} for part in parts[:1]]
    if script:
        parts[1:] = [{**part, "max_tiles": 1} for part in parts[1:]]
    domain = row.get("l2-category") or _DOMAIN.get(row["category"], "")
    return Item(
        id=row["index"],
        messages=user_message(parts, text),
        reference={
            "question": row["question"],
            "options": options,
            "answer": row["answer"],
            "subject": row["category"],
            "domain": domain,
        },
        max_tiles=limit * max(1, len(images)),  # the engine shares it out among the images
        max_new_tokens=10 if script else 1024,
    )


def score(
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Judge | None = None,
) -> Score:
    """``accuracy``, ``domain/...`` and ``subject/...``, in per cent.

    Notes: ``undecided`` answers that wait for a judge (paper, vlmevalkit-head); ``random``, letters that were drawn
    (official); ``unreadable``, empty choices on which the script stops, counted as wrong (internvl). The last two
    protocols have InternVL's report as ``report``, rounded to three decimals.
    """
    kind = chosen("protocol", protocol, PROTOCOLS)
    asked = list(items)
    texts = answers(asked, predictions)
    tally = Tally()
    tally.results = {"accuracy": []}
    decided = {item.id: _decide(item, texts[item.id], kind, judge) for item in asked}
    for item in asked:
        labels = [f"{label}/{item.reference[label]}" for label in ("domain", "subject") if item.reference[label]]
        tally.add(decided[item.id][0], "accuracy", *labels)
    flagged = sum(flag for _, flag in decided.values())
    if kind in _VERSIONS:
        partial = open_rules(0 if judge else flagged, len(asked))
        return tally.score("mmmu", items=len(asked), notes={"undecided": flagged}, partial=partial)
    report = metric.report((item.reference["subject"], decided[item.id][0]) for item in asked)
    notes = {"random" if kind == "official" else "unreadable": flagged, "report": report}
    return tally.score("mmmu", items=len(asked), notes=notes)


def _decide(item: Item, text: str, protocol: str, judge: Judge | None) -> tuple[bool, bool]:
    """Whether an answer is right, and whether it is one of those that the notes count."""
    options, gold = options_of(item), item.reference["answer"]
    if protocol in _VERSIONS:
        options, letter = metric.as_choice(options, gold)
        choice: Choice = choose(item.reference["question"], options, text, version=_VERSIONS[protocol], judge=judge)
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
    try:
        value = ast.literal_eval(answer) if answer.startswith("[") else answer
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = answer
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else [answer]


def right(item: Item, text: str) -> bool:
    """Whether an answer is right by the paper's rules without a judge."""
    return _decide(item, text, "paper", None)[0]


def _row(index: int, question: str, options: Sequence[str], answer: str, subject: str, **more: Any) -> dict[str, Any]:
    """A row of the table, for the example."""
    images = [ExampleImage(seed=index + place) for place in range(more.get("images", 1))]
    return {
        "index": index,
        "id": f"{more.get('split', 'validation')}_{subject}_{index}",
        "question": question,
        "hint": "",
        **dict(zip("ABCDE", [*options, *[""] * 5], strict=False)),
        "answer": answer,
        "image": images if len(images) > 1 else images[0],
        "image_path": "",
        "category": subject,
        "l2-category": _DOMAIN[subject],
        "split": more.get("split", "validation"),
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice" if options else "open",
        "subfield": "Basics",
    }


EXAMPLE = Example(
    files={
        TABLE: [
            _row(1, "What changes in <image 1>?", ["demand", "supply", "nothing"], "A", "Economics"),
            _row(2, "Which of <image 1> and <image 2> is larger?", ["<image 1>", "<image 2>"], "B", "Art", images=2),
            _row(3, "How many discs are in <image 1>?", [], "18", "Math"),
            _row(4, "Which organelle? <image 1>", [], "Mitochondria", "Biology"),
            _row(5, "Wie heißt das? <image 1>", ["π", "None", "NA", "½", "∞"], "E", "Physics"),
            _row(6, "Where is <image 1>?", ["left", "right"], "A", "History", split="dev"),
        ]
    },
    good=["A", "B.", "18", "the mitochondria", "(E) ∞"],
    bad=["", "A", "Other Answers", "ribosome", "π"],
    judge={"Answer: nan\n": "Z", "Answer: ribosome\n": "B"},
)
