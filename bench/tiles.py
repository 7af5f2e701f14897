"""Speed against accuracy: fewer tiles, and fewer visual tokens of them, beside as many tokens taken at random.

    python bench/tiles.py [--model CHECKPOINT] [--count 100] [--tiles 1,2,4,6] [--shares 0.75,0.5,0.25] [--seeds 2]

The questions are those of the benchmark ``synth``, ``--count`` of each kind. Every row is a fresh engine that answers
all of them: the score with its standard error, mean visual tokens and prompt tokens of a question, and seconds. Random
tokens are drawn ``--seeds`` times, and the mean is shown. ``--tiles`` are limits with all tokens; shares keep the
largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mini_internvl import load
from mini_internvl.benchmarks import synth
from mini_internvl.evaluate import predict
from mini_internvl.model.reduction import Reduction
from mini_internvl.records import Item


def measure(model: str | None, items: Sequence[Item], tiles: int, reduction: Reduction | None) -> dict[str, float]:
    """Score, tokens and seconds of one setting."""
    engine = load(model)
    engine.visual_tokens = reduction
    asked = [replace(item, max_tiles=tiles) for item in items]
    began = time.perf_counter()
    answers = predict(engine, asked)
    seconds = time.perf_counter() - began
    score = synth.score(asked, answers)
    sample = asked[:: max(1, len(asked) // 30)]  # enough for a mean
    prompts = [engine.route([engine.prepare(item.messages, max_tiles=tiles)])[0] for item in sample]
    token = engine.model.image_token_id
    return {
        **{name: value for name, value in score.values.items() if "/" not in name},
        "error": score.errors["mean"],
        "visual": statistics.fmean(prompt.input_ids.count(token) for prompt in prompts),
        "prompt": statistics.fmean(len(prompt.input_ids) for prompt in prompts),
        "seconds": seconds,
    }


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of several measurements, value by value."""
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


def settings(
    tiles: Sequence[int], shares: Sequence[float], seeds: int
) -> list[tuple[str, int, list[Reduction | None]]]:
    """Name, tile limit and reductions (several where they are random) of each row."""
    rows: list[tuple[str, int, list[Reduction | None]]] = [(f"{limit} tiles", limit, [None]) for limit in tiles]
    most = max(tiles)
    for share in shares:
        rows.append((f"{most} tiles, {share:g} of the tokens", most, [Reduction(share=share)]))
        random: list[Reduction | None] = [Reduction(share=share, rule="random", seed=seed) for seed in range(seeds)]
        if seeds:
            rows.append((f"{most} tiles, {share:g} at random", most, random))
    return rows


def main() -> int:
    """Measure every setting and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--tiles", default="1,2,4,6")
    parser.add_argument("--shares", default="0.75,0.5,0.25")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    items = list(synth.items(count=arguments.count))
    tiles = [int(text) for text in arguments.tiles.split(",")]
    shares = [float(text) for text in arguments.shares.split(",") if text]
    found: dict[str, Any] = {}
    kinds = synth.MAIN
    if not arguments.json:
        print(f"| {len(items)} questions | mean | {' | '.join(kinds)} | visual tokens | prompt tokens | seconds |")
        print("|---|" + "---:|" * (len(kinds) + 4))
    for name, limit, reductions in settings(tiles, shares, arguments.seeds):
        row = found[name] = mean([measure(arguments.model, items, limit, one) for one in reductions])
        if not arguments.json:
            scores = " | ".join(f"{row[kind]:.1f}" for kind in kinds)
            print(
                f"| {name} | {row['mean']:.1f} ± {row['error']:.1f} | {scores} | {row['visual']:.0f} | "
                f"{row['prompt']:.0f} | {row['seconds']:.1f} |",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
