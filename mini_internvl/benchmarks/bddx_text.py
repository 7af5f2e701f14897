"""BDD-X text: what is the car doing, and why. CIDEr, BLEU-4 and ROUGE-L, all times 100, as the paper prints them.

Each clip gives two items with one question each. ``full`` is the description, a space and the justification of the same
clip, from the same two answers (by definition: no public scorer says how); a clip of which only one question is among
the items has no part in it. An empty or missing answer is an empty caption: it lowers every metric and is counted in
the notes. Captions go through the PTB tokenizer, so case and punctuation do not count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mini_internvl.benchmarks._bddx import (
    PROTOCOLS,
    SPLITS,
    answers_by_item,
    clip_items,
    example_clip,
    example_frames,
)
from mini_internvl.benchmarks._example import Example
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._tally import mean_error
from mini_internvl.records import Item, Prediction, Score

__all__ = ["PROTOCOLS", "SPLITS"]

TITLE = "BDD-X text"
KINDS = ("description", "justification")
COLUMNS = {"CIDEr": "CIDEr", "B4": "Bleu_4", "ROUGE": "ROUGE_L"}
"""The paper's column -> the scorer's name."""
MEANS = ("CIDEr", "ROUGE")
"""Columns that are means over items and so have a standard error."""
PRIMARY_METRIC = "description/CIDEr"
PRIMARY_METRIC_MAX = 1000.0
LOWER_IS_BETTER: frozenset[str] = frozenset()


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """Two items a clip of ``clips.jsonl``, ids ``<clip>/description`` and ``<clip>/justification``.

    Raises:
        DataError: the folder, a row or a frame is missing or wrong (listed).
    """
    chosen("protocol", protocol, PROTOCOLS)
    return clip_items(root, "bddx_text", chosen("split", split, SPLITS), KINDS, max_new_tokens=48)


def score(
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Callable[..., str] | None = None,
) -> Score:
    """The paper's nine columns, ``description/CIDEr`` to ``full/ROUGE``; no judge is needed.

    Notes: ``empty`` counts answers that were missing or blank, ``clips`` those in ``full``.

    Raises:
        ValueError: there are no items.
    """
    from mini_internvl.metrics.captions import caption_scores

    chosen("protocol", protocol, PROTOCOLS)
    asked = list(items)
    if not asked:
        raise ValueError("bddx_text: there are no items to score")
    answers = {name: (text or "").strip() for name, text in answers_by_item(asked, predictions).items()}
    clips: dict[str, dict[str, tuple[str, str]]] = {}  # clip -> kind -> (reference, answer)
    for item in asked:
        clips.setdefault(item.reference["clip"], {})[item.reference["kind"]] = (
            item.reference["answer"],
            answers[item.id],
        )
    pairs = {kind: [clip[kind] for clip in clips.values() if kind in clip] for kind in KINDS}
    both = [(clip[KINDS[0]], clip[KINDS[1]]) for clip in clips.values() if len(clip) == len(KINDS)]
    pairs["full"] = [(f"{one[0]} {two[0]}", f"{one[1]} {two[1]}") for one, two in both]

    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    counts: dict[str, int] = {}
    for kind, rows in pairs.items():
        if rows:
            # An answer with a stray line break must not shift every later clip, as it would in the official script.
            found = caption_scores(
                [answer for _, answer in rows], [[reference] for reference, _ in rows], line_breaks="space"
            )
            values |= {f"{kind}/{column}": 100 * found[name] for column, name in COLUMNS.items()}
            errors |= {f"{kind}/{column}": 100 * mean_error(found.per_item[COLUMNS[column]]) for column in MEANS}
            counts |= {f"{kind}/{column}": len(rows) for column in COLUMNS}
    empty = sum(not text for text in answers.values())
    return Score(
        benchmark="bddx_text",
        values=values,
        errors=errors,
        counts=counts,
        items=len(asked),
        notes={"empty": empty, "clips": len(both)},
    )


def together(item: Item) -> str:
    """The clip, whose two answers make ``full``."""
    return str(item.reference["clip"])


def right(item: Item, text: str) -> bool:
    """Whether an answer has the reference's words; case and punctuation do not count, and the metrics do not use it."""
    return _words(text) == _words(item.reference["answer"])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


_CLIPS = [
    example_clip(1, "The car is slowing down.", "because the light ahead is red.", speed=9.31, turning_angle=-0.42),
    example_clip(2, "The car accelerates and turns to the left.", "because it is leaving the bend.", speed=None),
    example_clip(3, "The car stops at the café’s kerb.", "since a cyclist, who came from the right, crosses."),
]
EXAMPLE = Example(
    files={"clips.jsonl": _CLIPS},
    images=example_frames(*_CLIPS),
    good=[
        "The car is slowing down.",
        "Because the light ahead is red",
        "the car accelerates and turns to the left",
        "because it is leaving the bend.",
        "The car stops at the café’s kerb.",
        "since a cyclist, who came from the right, crosses.",
    ],
    bad=[
        "A street.",
        "",
        "The car is slowing down.",
        "because the light ahead is red.",
        "👋 no idea",
        "since it rains",
    ],
)
