"""ChartQA: questions about charts, half written by people ("human"), half generated ("augmented").

The paper's number is the plain mean of the two halves' relaxed accuracies, so both are one benchmark here, and the
splits "human" and "augmented" ask one half alone. Unusual: in the paper's protocol the tolerance of 5% is relative to
the model's answer, not to the gold one (see ``metrics/relaxed.py``); "standard-order" is the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._example import Example, ExampleImage
from mini_internvl.benchmarks._files import chosen, read_rows
from mini_internvl.benchmarks._tally import Tally, answers
from mini_internvl.benchmarks._vqa import (
    NEW_TOKENS,
    VLMEVALKIT_NEW_TOKENS,
    ask,
    check_fields,
    gold_answers,
    images,
    need,
    short_question,
    unique,
)
from mini_internvl.metrics.relaxed import relaxed_right, vlmevalkit_golds
from mini_internvl.records import Item, Prediction, Score

TITLE = "ChartQA"
HALVES = ("human", "augmented")
SPLITS = ("test", *HALVES)
PROTOCOLS = {
    "paper": "InternVL's script: the 5% are relative to the model's answer.",
    "standard-order": "The same script with the 5% relative to the gold answer, as ChartQA defines it.",
    "vlmevalkit-2024-10": "VLMEvalKit of October 2024: prompt with a line break, 5% of the model's answer.",
    "vlmevalkit-head": "VLMEvalKit now: prompt with a line break, 5% of the gold answer.",
}
PRIMARY_METRIC = "accuracy"
LOWER_IS_BETTER: frozenset[str] = frozenset()
FOLDERS = ("chartqa", "data/chartqa")
COLUMNS = ("image", "question", "question_id", "answer")


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, id ``human/<question_id>`` or ``augmented/<question_id>``; DataError names what is wrong.

    The files are ``test_human.jsonl`` and ``test_augmented.jsonl``, the human half first.
    """
    name, kind = chosen("split", split, SPLITS), chosen("protocol", protocol, PROTOCOLS)
    for half, path in [(half, _path(root, half)) for half in HALVES if name in ("test", half)]:
        rows = read_rows(path, COLUMNS)
        check_fields(path, rows, ("image", "question"), "question_id")
        golds = gold_answers(path, rows, "answer")
        places = images(path, [row["image"] for row in rows], Path(root))
        names = unique(f"{half}/{row['question_id']}" for row in rows)
        vlmevalkit = kind.startswith("vlmevalkit")
        for row, gold, place, item_id in zip(rows, golds, places, names, strict=True):
            yield ask(
                item_id,
                place,
                short_question(row["question"], vlmevalkit=vlmevalkit),
                {"half": half, "answers": row["answer"] if isinstance(row["answer"], str) else gold},
                max_tiles=12,
                max_new_tokens=VLMEVALKIT_NEW_TOKENS if vlmevalkit else NEW_TOKENS,
            )


def _path(root: str | Path, half: str) -> Path:
    return need(root, "chartqa", FOLDERS, (f"test_{half}.jsonl",))


def _right(golds: str | list[str], text: str, protocol: str) -> bool:
    if protocol.startswith("vlmevalkit"):
        golds = vlmevalkit_golds(golds, texts_only=protocol == "vlmevalkit-2024-10")
    by_answer = protocol in ("paper", "vlmevalkit-2024-10")
    return relaxed_right(text, golds, relative_to="answer" if by_answer else "gold")


def right(item: Item, text: str) -> bool:
    """Whether an answer counts in the paper's protocol."""
    return _right(item.reference["answers"], text, "paper")


def score(
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Callable[..., str] | None = None,
) -> Score:
    """``accuracy``, the mean of the halves among the items, and each half's own, in per cent; no judge is needed."""
    kind = chosen("protocol", protocol, PROTOCOLS)
    asked = list(items)
    texts = answers(asked, predictions)
    tally = Tally()
    tally.results = {half: [] for half in HALVES if any(item.reference["half"] == half for item in asked)}
    for item in asked:
        tally.add(_right(item.reference["answers"], texts[item.id], kind), item.reference["half"])
    halves = list(tally.results)
    mean = sum(tally.value(half) for half in halves) / max(1, len(halves))
    error = math.hypot(*(tally.error(half) for half in halves)) / max(1, len(halves))
    found = tally.score("chartqa", items=len(asked))
    return Score(
        benchmark="chartqa",
        values={PRIMARY_METRIC: mean, **found.values},
        errors={PRIMARY_METRIC: error, **found.errors},
        counts=found.counts,
        items=len(asked),
        notes={"empty": sum(not text.strip() for text in texts.values())},
    )


def _row(half: str, number: int, question: str, answer: str | list[str]) -> dict[str, Any]:
    name = f"data/chartqa/ChartQA Dataset/test/png/{half}{number % 2}.png"
    return {"image": name, "question": question, "question_id": number, "answer": answer}


EXAMPLE = Example(
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
