"""RSVQA-HR: questions about 512x512 aerial images: presence, comparison, counts and areas. Two test sets.

The primary metric is the paper's Avg.,
accuracy over the presence and comparison questions, taken over items. ``test1`` shows
the region of the training images, ``test2`` another one; the paper prints both. Ids of the two collide, so they carry
the split's name. An area's gold loses "m" and "2" from its end before it is read (:mod:`mini_internvl.metrics.rsvqa`).
Trap: InternVL's evaluate.sh runs test 2 under the name rsvqa-lr.
Official files: ``rsvqa_h_test_1_instruct.json``, ``rsvqa_h_test_2_instruct.json``, images in ``images/RSVQA-H/Data``.
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

TITLE = "RSVQA-HR"
FILES = {"test1": "rsvqa_h_test_1_instruct.json", "test2": "rsvqa_h_test_2_instruct.json"}
SPLITS = tuple(FILES)


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, id ``split/official id``; DataError names what is wrong with the files."""
    chosen("protocol", protocol, PROTOCOLS)
    name = chosen("split", split, SPLITS)
    return read_items(root, "rsvqa_hr", FILES[name], "RSVQA-H/Data", prefix=f"{name}/")


score = make_score("rsvqa_hr")

EXAMPLE = Example(
    files={
        FILES["test1"]: example_rows(
            "0.tif",
            ("presence", "Is there a building?", "yes"),
            ("comp", "Are there less roads than buildings?", "no"),
            ("count", "How many buildings are there?", "12"),
            ("area", "What is the area covered by roads?", "0m2"),
            ("area", "What is the area of buildings?", "1500m2"),
        ),
        FILES["test2"]: example_rows(
            "1.tif",
            ("presence", "Is there a park?", "no"),
            ("comp", "Is the number of roads equal to 3?", "yes"),
        ),
    },
    images={
        "images/RSVQA-H/Data/0.tif": ExampleImage(width=64, height=64),
        "images/RSVQA-H/Data/1.tif": ExampleImage(width=64, height=64, seed=1),
    },
    good=["yes", "No", "80", "0", "2000"],
    bad=["Yes, there is", "yes", "0", "0m2", "1500m2"],
)
