"""Training speed of the nano model: float32 and bfloat16, plain and fused attention, questions packed and one a row.

Run ``python bench/questions.py [--all] [--json]``. The same samples go through forward, backward and the optimiser in
each way, in turn, round after round; medians and ratios to float32 with packing are printed. Tokens are those of the
decoder, padding left out; the encoder's patches come on top. Where bfloat16 is emulated it is left out unless ``--all``
asks for it: it takes many minutes.
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
from mini_internvl.engine.device import fast_bfloat16
from mini_internvl.inputs import questions
from mini_internvl.model import attention
from mini_internvl.records import Batch
from mini_internvl.train.batches import micro_batches
from mini_internvl.train.data import MixedDataset, step_batches
from mini_internvl.train.initial import open_initial, sample_processor
from mini_internvl.train.learner import Learner
from mini_internvl.train.loop import accumulate
from mini_internvl.train.optim import make_optimizer

RECIPE = Path(__file__).parent.parent / "recipes" / "nano.yaml"
FIRST = "fp32, fused"
ALONE = "fp32, fused, one by one"
WAYS = {FIRST: ("fp32", 0), ALONE: ("fp32", 0)}
BF16 = {"bf16, fused": ("bf16", 0), "bf16, plain": ("bf16", attention.PLAIN_UP_TO)}


@contextmanager
def plain_up_to(length: int):
    """Use the plain attention up to this length only."""
    before, attention.PLAIN_UP_TO = attention.PLAIN_UP_TO, length
    try:
        yield
    finally:
        attention.PLAIN_UP_TO = before


def split_questions(dataset: MixedDataset, step: int) -> list[Batch]:
    """The step's samples with every question in a row of its own, which reads the image again."""
    size, rows = dataset.stage.batch_size, []
    for n in range(step * size, (step + 1) * size):
        sample = dataset.sample(n)
        alone = questions.split_questions(sample.messages) if sample.independent else [sample.messages]
        rows += [dataset.process(replace(sample, messages=messages, independent=False)) for messages in alone]
    return micro_batches(rows, 32)


def main() -> None:
    """Time the ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--all", action="store_true", help="emulated bfloat16 too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    recipe = recipes.load(RECIPE)
    start = open_initial(replace(recipe, device="cpu"))
    stage = replace(recipe.stages[-1], steps=2, loss="answers", max_length=1024)
    stage = replace(stage, data=tuple(s for s in stage.data if s.name in ("words", "shapes", "charts", "text")))
    dataset = MixedDataset(stage, sample_processor(start, stage), seed=0)
    device = start.model.device
    ways = WAYS | (BF16 if arguments.all or fast_bfloat16(device) else {})
    together = [step.batches for step in step_batches(dataset, 0, workers=0)]
    steps = dict.fromkeys(ways, together) | {ALONE: [split_questions(dataset, i) for i in range(stage.steps)]}
    learner = Learner(start.model, stage).train()
    answers = round(sum(learner.count(batch) for batches in together for batch in batches))
    optimizer = make_optimizer(learner, stage)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.rounds + 1):
        for name, (precision, length) in ways.items():
            began = time.perf_counter()
            with plain_up_to(length):
                for batches in steps[name]:
                    count = sum(learner.count(batch) for batch in batches)
                    accumulate(learner, batches, count, device, precision)
                    optimizer.step()
                    optimizer.zero_grad()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    rows = {}
    for name in ways:
        ratios = [a / b for a, b in zip(seconds[FIRST], seconds[name], strict=True)]
        tokens = sum(int(batch.attention_mask.sum()) for batches in steps[name] for batch in batches)
        rows[name] = {
            "tokens": tokens,
            "tokens_per_s": round(tokens / statistics.median(seconds[name])),
            "answer_tokens_per_s": round(answers / statistics.median(seconds[name])),
            "ratio": round(statistics.median(ratios), 2),
        }
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads(), "answer_tokens": answers, **rows}))
        return
    print(f"nano, {len(together)} steps of {stage.batch_size} samples, {torch.get_num_threads()} threads")
    for name, row in rows.items():
        speeds = f"{row['tokens_per_s']:6,} tokens/s  {row['answer_tokens_per_s']:5,} answer tokens/s"
        print(f"{name:24} {speeds}  {row['ratio']:.2f}x")
    if len(ways) == len(WAYS):
        print("bfloat16 is emulated on this processor and was left out; --all measures it")


if __name__ == "__main__":
    main()
