"""The drawn images as a benchmark: exact answers on fonts, words, values and tables that training never used.

There are no files to read: ``items`` draws them, the same for the same seed, fonts and tables. A kind whose data
package is missing is left out by ``kinds`` and named by ``synth.missing``. Boxes count as right at an IoU of 0.5, with
the right name where it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mini_internvl import synth
from mini_internvl.benchmarks import _vqa
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._tally import Asked, Judge, Tally, with_answers
from mini_internvl.inputs import boxes as written
from mini_internvl.records import Item, Score

TITLE = "Drawn images"
SPLITS = ("test", "train")
PROTOCOLS = {"exact": "Exact texts; a box counts at an IoU of 0.5, with the right name where it is asked."}
MAIN = ("shapes", "words", "charts")  # kinds of the primary metric: coloured shapes, rendered words and numbers, charts
SEED = 2024  # base seed of the images; training recipes use others, and another split
PRIMARY_METRIC = "mean"
MAX_NEW_TOKENS = 48
EXAMPLE = None


def kinds() -> list[str]:
    """Kinds that can be drawn on this machine."""
    return [kind for kind in synth.KINDS if synth.missing(kind) is None]


def items(
    root: str | Path | None = None,
    split: str | None = None,
    *,
    protocol: str | None = None,
    names: Sequence[str] = MAIN,
    count: int = 200,
    seed: int = SEED,
) -> Iterator[Item]:
    """``count`` questions of each kind, each about its own image; ``root`` is not read."""
    split = chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    for kind in names:
        for index in range(count):
            image, questions = synth.draw(kind, seed, index, split)
            asked = questions[0]
            reference = {"kind": kind, "task": asked.task, "answer": asked.answer}
            name = f"{kind}/{seed}/{index}"
            yield _vqa.ask(
                name, [image], asked.question, reference, max_tiles=synth.MAX_TILES, max_new_tokens=MAX_NEW_TOKENS
            )


def right(item: Item, text: str) -> bool:
    """Whether an answer counts: the exact text, or for boxes an IoU of 0.5 or more, with the name where that is asked.

    Texts with boxes are compared as parsed, because decoding drops their tags as special tokens.
    """
    gold, task = item.reference["answer"], item.reference["task"]
    if task not in ("detect", "region"):
        return bool(text.strip() == gold.strip())
    answered = written.parse(text)
    if not answered:
        return False
    (name, wanted), (said, found) = written.parse(gold)[0], answered[0]
    return written.iou(wanted[0], found[0]) >= 0.5 and (task == "detect" or said == name)


@with_answers(PROTOCOLS)
def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
    """Per cent of right answers by kind, by kind and task, and the mean over kinds; no judge is needed."""
    tally = Tally()
    for item, text in asked:
        kind = item.reference["kind"]
        tally.add(right(item, text), kind, f"{kind}/{item.reference['task']}")
    found = tally.score("synth", items=len(asked))
    kinds = [name for name in found.values if "/" not in name]
    n = max(1, len(kinds))
    mean = math.fsum(found.values[kind] for kind in kinds) / n
    error = math.hypot(*(found.errors[kind] for kind in kinds)) / n
    return replace(
        found,
        values={**found.values, "mean": mean},
        errors={**found.errors, "mean": error},
        counts={**found.counts, "mean": len(asked)},
    )
