"""The drawn images as a benchmark: exact answers on fonts, words, values and tables that training never used.

There are no files to read: ``items`` draws them, the same for the same seed, fonts and tables. A kind whose data
package is missing is left out by ``kinds`` and named by ``synth.missing``. Boxes count as right at an IoU of 0.5, with
the right name where it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mini_internvl import synth
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._tally import Tally, answers
from mini_internvl.inputs import boxes as written
from mini_internvl.records import Item, Part, Prediction, Score

TITLE = "Drawn images"
SPLITS = ("test", "train")
PROTOCOLS = {"exact": "Exact texts; a box counts at an IoU of 0.5, with the right name where it is asked."}
MAIN = ("shapes", "words", "charts")
"""Kinds of the primary metric: coloured shapes, rendered words and numbers, charts."""
SEED = 2024
"""Base seed of the images; training recipes use others, and another split."""
PRIMARY_METRIC = "mean"
LOWER_IS_BETTER: frozenset[str] = frozenset()
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
            content: list[Part] = [{"type": "image", "image": image}, {"type": "text", "text": asked.question}]
            yield Item(
                id=f"{kind}/{seed}/{index}",
                messages=[{"role": "user", "content": content}],
                reference={"kind": kind, "task": asked.task, "answer": asked.answer},
                max_tiles=synth.MAX_TILES,
                max_new_tokens=MAX_NEW_TOKENS,
            )


def right(item: Item, text: str) -> bool:
    """Whether an answer counts: the exact text, or for boxes an IoU of 0.5 or more, with the name where that is asked.

    Texts with boxes are compared as parsed, because decoding drops their tags as special tokens.
    """
    gold, task = item.reference["answer"], item.reference["task"]
    if task not in ("detect", "region"):
        return bool(text.strip() == gold.strip())
    given = written.parse(text)
    if not given:
        return False
    (name, wanted), (said, found) = written.parse(gold)[0], given[0]
    return written.iou(wanted[0], found[0]) >= 0.5 and (task == "detect" or said == name)


def score(
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Callable[..., str] | None = None,
) -> Score:
    """Per cent of right answers by kind, by kind and task, and the mean over kinds; no judge is needed."""
    chosen("protocol", protocol, PROTOCOLS)
    asked = list(items)
    texts = answers(asked, predictions)
    tally = Tally()
    for item in asked:
        kind, task = item.reference["kind"], item.reference["task"]
        tally.add(right(item, texts[item.id]), kind, f"{kind}/{task}")
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
