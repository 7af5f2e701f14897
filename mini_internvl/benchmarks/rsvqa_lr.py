"""RSVQA-LR: questions about 256x256 satellite images: presence, comparison, rural or urban, and counts.

The primary metric is the paper's Avg.,
accuracy over all questions but the counts, taken over items, so it is not the mean of
the three columns. Only case is ignored; "yes." is wrong.
Trap: InternVL's evaluate.sh runs RSVQA-HR test 2 under the name rsvqa-lr, and this one under rsvqa-hr-test2.
Official file: ``rsvqa_l_test_instruct.json``, images in ``images/RSVQA_L/Images_LR``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks._example import Example, ExampleImage
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._rsvqa import (
    LOWER_IS_BETTER,
    PRIMARY_METRIC,
    PROTOCOLS,
    example_rows,
    make_score,
    read_items,
    right,
)
from mini_internvl.records import Item

__all__ = ["LOWER_IS_BETTER", "PRIMARY_METRIC", "PROTOCOLS", "right"]

TITLE = "RSVQA-LR"
SPLITS = ("test",)
FILE = "rsvqa_l_test_instruct.json"


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, with the official id; DataError names what is wrong with the files."""
    chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    return read_items(root, "rsvqa_lr", FILE, "RSVQA_L/Images_LR")


score = make_score("rsvqa_lr")

EXAMPLE = Example(
    files={
        FILE: example_rows(
            "0.tif",
            ("rural_urban", "Is it a rural or an urban area", "rural"),
            ("presence", "Is there a road?", "yes"),
            ("count", "What is the number of buildings?", "0"),
            ("comp", "Are there more roads than water areas?", "no"),
            ("count", "What is the number of roads?", "40"),
            ("presence", "Is a café present?", "no"),
        )
    },
    images={"images/RSVQA_L/Images_LR/0.tif": ExampleImage(width=64, height=64)},
    good=["rural", "Yes", "0", "no", "7", "No"],
    bad=["a rural area", "yes.", "none", "", "1000", "no "],
)
