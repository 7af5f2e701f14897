"""Items per second of an evaluation: batches against one item at a time, the same model, in one run.

    python bench/eval.py [--model CHECKPOINT] [--items 128] [--rounds 3] [--json]

The items are questions about drawn images (shapes, words, charts, or ``--kinds``): one about each image, and up to
four about each, as MMBench's four rotations or DocVQA's pages have. "One at a time" calls ``engine.chat`` for each
item, "batched" is ``evaluate.predict``; they take turns, and every answer of the two must be the same. Medians are
printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch

from mini_internvl import load, synth
from mini_internvl.engine import Engine, GenerationConfig
from mini_internvl.evaluate import predict
from mini_internvl.records import Item

SEED = 2024


def drawn(kinds: list[str], count: int, questions: int) -> list[Item]:
    """Items about as many images as they need, ``questions`` about each."""
    items: list[Item] = []
    for index in range(count):
        for kind in kinds:
            image, made = synth.draw(kind, SEED, index, "train")
            asked = list(dict.fromkeys(qa.question for qa in made))[:questions]
            for number, text in enumerate(asked):
                content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
                items.append(
                    Item(
                        id=f"{kind}/{index}/{number}",
                        messages=[{"role": "user", "content": content}],
                        reference={},
                        max_tiles=synth.MAX_TILES,
                        max_new_tokens=48,
                    )
                )
    return items[:count]


def alone(engine: Engine, items: list[Item]) -> list[str]:
    """Answers, one item after the other."""
    limits = GenerationConfig(max_new_tokens=48)
    return [engine.chat(item.messages, limits, max_tiles=item.max_tiles).text for item in items]


def measure(engine: Engine, items: list[Item], batch_size: int, rounds: int) -> dict[str, float]:
    """Items per second of both ways, the median ratio, and how many answers differ."""
    ways = {
        "one": lambda: alone(engine, items),
        "batched": lambda: [p.text for p in predict(engine, items, batch_size=batch_size)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[str]] = {}
    for _ in range(rounds):
        for name, work in ways.items():
            began = time.perf_counter()
            answers[name] = work()
            seconds[name].append(time.perf_counter() - began)
    speed = {name: round(len(items) / statistics.median(times), 2) for name, times in seconds.items()}
    ratios = [one / batch for one, batch in zip(seconds["one"], seconds["batched"], strict=True)]
    differing = sum(a != b for a, b in zip(answers["one"], answers["batched"], strict=True))
    return {**speed, "ratio": round(statistics.median(ratios), 2), "differing_answers": differing}


def main() -> int:
    """Time both ways; exit code 1 when an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--kinds", default="shapes,words,charts")
    parser.add_argument("--items", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    kinds = given.kinds.split(",")
    sets = {
        "one question an image": drawn(kinds, given.items, 1),
        "up to four questions each": drawn(kinds, given.items, 4),
    }
    engine = load(given.model)
    predict(engine, sets["one question an image"][:4], batch_size=4)  # what is built once is built
    rows = {name: measure(engine, items, given.batch_size, given.rounds) for name, items in sets.items()}
    if given.json:
        facts = {"threads": given.threads, "items": given.items, "batch_size": given.batch_size}
        print(json.dumps({**facts, **rows}))
    else:
        print(f"{given.model or 'nano'}, {given.items} items, {given.threads} threads, batches of {given.batch_size}")
        for name, row in rows.items():
            print(f"{name:24} one at a time {row['one']:6.2f} items/s, batched {row['batched']:6.2f} items/s, "
                  f"{row['ratio']:.2f}x, differing answers: {row['differing_answers']}")  # fmt: skip
    return int(any(row["differing_answers"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
