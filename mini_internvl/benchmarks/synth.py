"""The drawn pictures as a benchmark: exact answers on fonts, words, values and tables that training never used.

There are no files to read: ``items`` draws them, the same for the same seed, fonts and tables. A kind whose data
package is missing is left out by ``kinds`` and named by ``synth.missing``. Boxes count as right at an IoU of 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mini_internvl import synth
from mini_internvl.inputs import boxes
from mini_internvl.records import Item, Part, Prediction, Score

MAIN = ("shapes", "words", "charts")
"""Kinds of the headline: coloured shapes, rendered words and numbers, charts."""
SEED = 2024
"""Base seed of the pictures; training recipes use others, and another split."""
HEADLINE = "mean"
LOWER_IS_BETTER: tuple[str, ...] = ()
MAX_NEW_TOKENS = 48
EXAMPLE = ({"kinds": ("shapes",), "count": 2}, None, "no answer is empty")


def kinds() -> list[str]:
    """Kinds that can be drawn on this machine."""
    return [kind for kind in synth.KINDS if synth.missing(kind) is None]


def items(
    root: Path | None = None,
    split: str = "test",
    *,
    names: Sequence[str] = MAIN,
    count: int = 200,
    seed: int = SEED,
) -> Iterator[Item]:
    """``count`` questions of each kind, each about its own picture; ``root`` is not read."""
    for kind in names:
        for index in range(count):
            image, questions = synth.draw(kind, seed, index, split)
            asked = questions[0]
            content: list[Part] = [{"type": "image", "image": image}, {"type": "text", "text": asked.question}]
            yield Item(
                id=f"{kind}/{seed}/{index}",
                messages=[{"role": "user", "content": content}],
                truth={"kind": kind, "task": asked.task, "answer": asked.answer},
                max_tiles=synth.MAX_TILES,
                max_new_tokens=MAX_NEW_TOKENS,
            )


def right(item: Item, text: str) -> bool:
    """Whether an answer counts: the exact text, or for boxes the phrase's box at IoU 0.5 or more."""
    gold = item.truth["answer"]
    if item.truth["task"] == "detect":
        wanted, given = boxes.parse(gold), boxes.parse(text)
        found = bool(given and given[0][1])
        return found and boxes.iou(wanted[0][1][0], given[0][1][0]) >= 0.5
    return text.strip() == gold.strip()


def score(asked: Sequence[Item], predictions: Sequence[Prediction]) -> Score:
    """Per cent of right answers by kind, by kind and task, and the mean over kinds."""
    answers = {prediction.item_id: prediction.text for prediction in predictions}
    groups: dict[str, list[bool]] = {}
    for item in asked:
        ok = right(item, answers.get(item.id, ""))
        groups.setdefault(item.truth["kind"], []).append(ok)
        groups.setdefault(f"{item.truth['kind']}/{item.truth['task']}", []).append(ok)
    values = {name: 100 * sum(oks) / len(oks) for name, oks in groups.items()}
    whole = [value for name, value in values.items() if "/" not in name]
    values["mean"] = sum(whole) / len(whole) if whole else 0.0
    counts = {name: len(oks) for name, oks in groups.items()}
    return Score(benchmark="synth", values=values, items=len(asked), notes={"counts": counts})
