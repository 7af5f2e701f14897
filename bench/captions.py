"""Seconds to score captions (PTB tokens, BLEU-1..4, ROUGE-L, CIDEr), beside the Java scorer where it is installed.

Run ``python bench/captions.py [--json]``. Pairs are like BDD-X: one reference of about 15 words, half of the answers
wrong in a few words. For the comparison install ``pycocoevalcap`` and Java; both then score the same pairs in turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import shutil
import statistics
import time
from collections.abc import Callable

from mini_internvl.metrics.captions import caption_scores

WORDS = [
    "the",
    "car",
    "is",
    "slowing",
    "down",
    "stopped",
    "moving",
    "forward",
    "turning",
    "left",
    "right",
    "merges",
    "into",
    "lane",
    "because",
    "a",
    "light",
    "has",
    "turned",
    "red",
    "green",
    "traffic",
    "ahead",
    "pedestrian",
    "crossing",
    "to",
    "avoid",
    "parked",
    "vehicle",
    "on",
    "road",
    "bends",
    "sharply",
    "it",
    "its",
    "wet",
    "and",
    "then",
    "waits",
]
NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")


def pairs(count: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Seeded hypotheses and single references, ending with full stops and now and then a comma or a clitic."""
    rng = random.Random(seed)
    hypotheses, references = [], []
    for _ in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(11, 19))]
        if rng.random() < 0.3:
            words[5] += ","
        if rng.random() < 0.1:
            words[3] = "car's"
        changed = [rng.choice(WORDS) if rng.random() < 0.15 else word for word in words]
        references.append([" ".join(words).capitalize() + "."])
        hypotheses.append(" ".join(changed if rng.random() < 0.5 else words).capitalize() + ".")
    return hypotheses, references


def java_scorer() -> Callable[[list[str], list[list[str]]], dict[str, float]] | None:
    """pycocoevalcap's scorers, or ``None`` when they or Java are missing."""
    if importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None:
        return None
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def score(hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
        tokenizer = PTBTokenizer()
        gold = tokenizer.tokenize({i: [{"caption": c} for c in group] for i, group in enumerate(references)})
        said = tokenizer.tokenize({i: [{"caption": c}] for i, c in enumerate(hypotheses)})
        bleu = Bleu(4).compute_score(gold, said, verbose=0)[0]
        rest = [Rouge().compute_score(gold, said)[0], Cider().compute_score(gold, said)[0]]
        return dict(zip(NAMES, [*bleu, *rest], strict=True))

    return score


def main() -> None:
    """Time both scorers in turn and print seconds, ratio and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    java = java_scorer()
    rows = []
    for count in (1000, 5000):
        hypotheses, references = pairs(count)
        seconds: dict[str, list[float]] = {"ours": [], "java": []}
        difference = None
        for _ in range(arguments.rounds):
            began = time.perf_counter()
            ours = caption_scores(hypotheses, references)
            seconds["ours"].append(time.perf_counter() - began)
            if java:
                began = time.perf_counter()
                theirs = java(hypotheses, references)
                seconds["java"].append(time.perf_counter() - began)
                difference = max(abs(ours[name] - theirs[name]) for name in NAMES)
        row = {"pairs": count, "ours_s": round(statistics.median(seconds["ours"]), 3)}
        if java:
            row["java_s"] = round(statistics.median(seconds["java"]), 3)
            row["ratio"] = round(row["java_s"] / row["ours_s"], 2)
            row["largest_difference"] = difference
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        beside = (
            f"  java {row['java_s']:.2f} s, {row['ratio']}x, differs by {row['largest_difference']:.1e}" if java else ""
        )
        print(f"{row['pairs']:5} pairs  {row['ours_s']:.2f} s{beside}")
    if not java:
        print("pycocoevalcap or Java is not installed: nothing to compare with")


if __name__ == "__main__":
    main()
