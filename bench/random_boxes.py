"""Boxes of an adaptation beside boxes that are drawn at random from its training answers, as many as the truth has.

    python bench/random_boxes.py runs/trees [--draws 200]

The run folder is one of ``minivl adapt`` on data of one's own with boxes. Each question is answered by every draw, and
the mean over its draws is compared with the model's answer, question by question.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from mini_internvl import files, terminal
from mini_internvl.benchmarks import own
from mini_internvl.data.rows import read_rows
from mini_internvl.inputs import boxes
from mini_internvl.inputs.questions import asked
from mini_internvl.metrics import shapes
from mini_internvl.records import Sample

METRICS = ("f1", "mean_iou")


def drawn(known: Sequence[boxes.Box], gold: str, rng: random.Random) -> str:
    """An answer with the phrases of the truth, and as many boxes."""
    return "".join(
        boxes.render(phrase, [[round(edge) for edge in rng.choice(known)] for _ in found])
        for phrase, found in boxes.parse(gold)
    )


def cell(values: Sequence[float]) -> str:
    """Per cent with the standard error over questions."""
    return f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder of an adaptation")
    parser.add_argument("--draws", type=int, default=200)
    given = parser.parse_args()
    training = (sample for sample in read_rows(given.run / "data" / "train.jsonl") if isinstance(sample, Sample))
    answers = [answer for sample in training for _, answer in asked(sample)]
    known = [box for answer in answers for _, found in boxes.parse(answer) for box in found]
    items = [one for one in own.items(given.run / "data", "test") if one.reference["shape"] == "boxes"]
    if not known or not items:
        parser.error(f"{given.run} has no boxes to learn, or none to find")
    lines = files.read_text(given.run / "adapted" / "own" / "predictions.jsonl").splitlines()
    said = {row["id"]: row["answer"] for row in map(json.loads, lines)}
    rng = random.Random(0)
    model: dict[str, list[float]] = {metric: [] for metric in METRICS}
    chance: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for item in items:
        gold = item.reference["answer"]
        found = shapes.results("boxes", "", gold, said[item.id])
        draws = [shapes.results("boxes", "", gold, drawn(known, gold, rng)) for _ in range(given.draws)]
        for metric in METRICS:
            model[metric].append(found[metric])
            chance[metric].append(statistics.fmean(draw[metric] for draw in draws))
    rows = []
    for metric in METRICS:
        lead = [one - other for one, other in zip(model[metric], chance[metric], strict=True)]
        rows.append((metric, cell(model[metric]), cell(chance[metric]), cell(lead)))
    title = f"{len(items)} questions about boxes, {len(known)} boxes learnt from, {given.draws} draws; per cent ± s.e."
    terminal.table(title, ("", "adapted", "drawn at random", "lead, paired"), rows)


if __name__ == "__main__":
    main()
