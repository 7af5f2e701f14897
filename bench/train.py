"""Training speed of the nano model in tokens per second: float32 and bfloat16, plain and fused attention.

Run ``python bench/train.py [--json]``. The same batches go through forward, backward and AdamW in each way, in turn,
round after round; medians and ratios to float32 are printed. Tokens are those of the decoder, padding left out; the
encoder's patches come on top and are the same for all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from mini_internvl import recipes
from mini_internvl.model import attention
from mini_internvl.train.data import StepDataset
from mini_internvl.train.loop import accumulate, make_optimizer
from mini_internvl.train.run import encoder, open_start

RECIPE = Path(__file__).parent.parent / "recipes" / "nano.yaml"
WAYS = {"fp32, fused": ("fp32", 0), "bf16, fused": ("bf16", 0), "bf16, plain": ("bf16", attention.PLAIN_UP_TO)}


@contextmanager
def plain_up_to(length: int):
    """Use the plain attention up to this length only."""
    before, attention.PLAIN_UP_TO = attention.PLAIN_UP_TO, length
    try:
        yield
    finally:
        attention.PLAIN_UP_TO = before


def main() -> None:
    """Time the ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    recipe = recipes.load(RECIPE)
    start = open_start(recipe)
    stage = replace(recipe.stages[-1], steps=2)
    stage = replace(stage, data=tuple(s for s in stage.data if s.name in ("words", "shapes", "charts", "text")))
    dataset = StepDataset(stage, encoder(start, max_tiles=6, max_length=1024), pad_id=0, seed=0)
    steps = [dataset[i] for i in range(len(dataset))]
    tokens = sum(int(batch.attention_mask.sum()) for batches in steps for batch in batches)
    model = start.model.train()
    optimizer = make_optimizer(model, stage)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(arguments.rounds + 1):
        for name, (precision, length) in WAYS.items():
            began = time.perf_counter()
            with plain_up_to(length):
                for batches in steps:
                    accumulate(model, batches, precision)
                    optimizer.step()
                    optimizer.zero_grad()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    rows = {}
    for name in WAYS:
        ratios = [a / b for a, b in zip(seconds["fp32, fused"], seconds[name], strict=True)]
        rows[name] = {
            "tokens_per_s": round(tokens / statistics.median(seconds[name])),
            "ratio": round(statistics.median(ratios), 2),
        }
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads(), "tokens": tokens, **rows}))
        return
    print(f"nano, {len(steps)} steps of {stage.batch_size} samples, {tokens} tokens, {torch.get_num_threads()} threads")
    for name, row in rows.items():
        print(f"{name:14} {row['tokens_per_s']:6,} tokens/s  {row['ratio']:.2f}x")


if __name__ == "__main__":
    main()
