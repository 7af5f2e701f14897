"""BDD-X text: what is the car doing, and why. CIDEr, BLEU-4 and ROUGE-L, all times 100, as the paper prints them.

Each clip gives two items with one question each. ``full`` is the description, a space and the justification of the same
clip, from the same two answers (by definition: no public scorer says how); a clip of which only one question is among
the items has no part in it. An empty or missing answer is an empty caption: it lowers every metric and is counted in
the notes. Captions go through the PTB tokenizer, so case and punctuation do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import _bddx
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._tally import Asked, Judge, empty_answers, mean_error, with_answers
from mini_internvl.records import Item, Score

TITLE = "BDD-X text"
SPLITS, PROTOCOLS = _bddx.SPLITS, _bddx.PROTOCOLS
QUESTION_KINDS = ("description", "justification")
COLUMNS = {"CIDEr": "CIDEr", "B4": "Bleu_4", "ROUGE": "ROUGE_L"}  # the paper's column -> the scorer's name
MEANS = ("CIDEr", "ROUGE")  # columns that are means over items and so have a standard error
PRIMARY_METRIC = "description/CIDEr"
PRIMARY_METRIC_MAX = 1000.0


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """Ids ``<clip>/description`` and ``<clip>/justification``; DataError lists what is missing or wrong."""
    chosen("protocol", protocol, PROTOCOLS)
    return _bddx.clip_items(root, "bddx_text", chosen("split", split, SPLITS), QUESTION_KINDS, max_new_tokens=48)


@with_answers(PROTOCOLS)
def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
    """The paper's nine columns, ``description/CIDEr`` to ``full/ROUGE``; no judge is needed.

    Notes: ``empty`` counts answers that were missing or blank, ``clips`` those in ``full``. ValueError without items.
    """
    from mini_internvl.metrics.captions import caption_scores

    if not asked:
        raise ValueError("bddx_text: there are no items to score")
    clips: dict[str, dict[str, tuple[str, str]]] = {}  # clip -> kind -> (answer, reference)
    for item, text in asked:
        clips.setdefault(item.reference["clip"], {})[item.reference["kind"]] = text.strip(), item.reference["answer"]
    both = [[clip[kind] for kind in QUESTION_KINDS] for clip in clips.values() if len(clip) == len(QUESTION_KINDS)]
    pairs = {kind: [clip[kind] for clip in clips.values() if kind in clip] for kind in QUESTION_KINDS}
    pairs["full"] = [(f"{one[0]} {two[0]}", f"{one[1]} {two[1]}") for one, two in both]

    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    counts: dict[str, int] = {}
    for kind, rows in pairs.items():
        if rows:
            # An answer with a stray line break must not shift every later clip, as it would in the official script.
            answers, references = [answer for answer, _ in rows], [[reference] for _, reference in rows]
            found = caption_scores(answers, references, line_breaks="space")
            values |= {f"{kind}/{column}": 100 * found[name] for column, name in COLUMNS.items()}
            errors |= {f"{kind}/{column}": 100 * mean_error(found.per_item[COLUMNS[column]]) for column in MEANS}
            counts |= {f"{kind}/{column}": len(rows) for column in COLUMNS}
    notes = {**empty_answers(asked), "clips": len(both)}
    return Score(benchmark="bddx_text", values=values, errors=errors, counts=counts, items=len(asked), notes=notes)


def together(item: Item) -> str:
    """The clip, whose two answers make ``full``."""
    return str(item.reference["clip"])


def right(item: Item, text: str) -> bool:
    """Whether an answer has the reference's words; case and punctuation do not count, and the metrics do not use it."""
    return _words(text) == _words(item.reference["answer"])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


_TEXTS = [
    ("The car is slowing down.", "because the light ahead is red."),
    ("The car accelerates and turns to the left.", "because it is leaving the bend."),
    ("The car stops at the café’s kerb.", "since a cyclist, who came from the right, crosses."),
]
EXAMPLE = _bddx.example(
    *(_bddx.example_clip(number, *texts) for number, texts in enumerate(_TEXTS, 1)),
    good=[text for texts in _TEXTS for text in (texts[0].lower(), texts[1].capitalize().rstrip("."))],
    bad=["A street.", "", *_TEXTS[0], "👋 no idea", "since it rains"],
)
