"""RSVQA-LR: questions about 256x256 satellite images: presence, comparison, rural or urban, and counts.

The primary metric is the paper's Avg., accuracy over all questions but the counts, taken over items, so it is not the
mean of the three columns. Only case is ignored; "yes." is wrong.
Trap: InternVL's evaluate.sh runs RSVQA-HR test 2 under the name rsvqa-lr, and this one under rsvqa-hr-test2.
Official file: ``rsvqa_l_test_instruct.json``, images in ``images/RSVQA_L/Images_LR``. Without it the authors' own files
are read (``LR_split_test_questions.json`` and the two beside it, images in ``Images_LR``), and for the split
``validation`` ``LR_split_val_questions.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import _rsvqa
from mini_internvl.benchmarks._files import chosen
from mini_internvl.records import Item

TITLE = "RSVQA-LR"
STEMS = {"test": "LR_split_test", "validation": "LR_split_val", "train": "LR_split_train"}
SPLITS = ("test", "validation")
PROTOCOLS, PRIMARY_METRIC, right = _rsvqa.PROTOCOLS, _rsvqa.PRIMARY_METRIC, _rsvqa.right
FILE = "rsvqa_l_test_instruct.json"
IMAGES = "RSVQA_L/Images_LR"
FOLDERS = (IMAGES, "Images_LR")


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, with the official id; DataError names what is wrong with the files."""
    split = chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    return _rsvqa.read_items(root, "rsvqa_lr", FILE if split == "test" else "", FOLDERS, stem=STEMS[split])


score = _rsvqa.make_score("rsvqa_lr")

_TEST = [
    ("rural_urban", "Is it a rural or an urban area", "rural"),
    ("presence", "Is there a road?", "yes"),
    ("count", "What is the number of buildings?", "0"),
    ("comp", "Are there more roads than water areas?", "no"),
    ("count", "What is the number of roads?", "40"),
    ("presence", "Is a café present?", "no"),
]
EXAMPLE = _rsvqa.example(
    IMAGES,
    {FILE: _TEST},
    good=["rural", "Yes", "0", "no", "7", "No"],
    bad=["a rural area", "yes.", "none", "", "1000", "no "],
)
