"""RSVQA-HR: questions about 512x512 aerial images: presence, comparison, counts and areas. Two test sets.

The primary metric is the paper's Avg., accuracy over the presence and comparison questions, taken over items.
``test1`` shows the region of the training images, ``test2`` another one; the paper prints both. Ids of the two collide,
so they carry the split's name. An area's gold loses "m" and "2" from its end before it is read (see
``metrics/rsvqa.py``).
Trap: InternVL's evaluate.sh runs test 2 under the name rsvqa-lr.
Official files: ``rsvqa_h_test_1_instruct.json``, ``rsvqa_h_test_2_instruct.json``, images in ``images/RSVQA-H/Data``.
Without them the authors' own files are read (``USGS_split_test_questions.json``,
``USGS_split_test_phili_questions.json`` and those beside them, images in ``Data``), and for the split ``validation``
``USGS_split_val_questions.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import _rsvqa
from mini_internvl.benchmarks._files import chosen
from mini_internvl.records import Item

TITLE = "RSVQA-HR"
FILES = {"test1": "rsvqa_h_test_1_instruct.json", "test2": "rsvqa_h_test_2_instruct.json"}
STEMS = {
    "test1": "USGS_split_test",
    "test2": "USGS_split_test_phili",
    "validation": "USGS_split_val",
    "train": "USGS_split_train",
}
SPLITS = ("test1", "test2", "validation")
PROTOCOLS, PRIMARY_METRIC, right = _rsvqa.PROTOCOLS, _rsvqa.PRIMARY_METRIC, _rsvqa.right
IMAGES = "RSVQA-H/Data"
FOLDERS = (IMAGES, "Data")


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, id ``split/official id``; DataError names what is wrong with the files."""
    chosen("protocol", protocol, PROTOCOLS)
    name = chosen("split", split, SPLITS)
    return _rsvqa.read_items(root, "rsvqa_hr", FILES.get(name, ""), FOLDERS, stem=STEMS[name], prefix=f"{name}/")


score = _rsvqa.make_score("rsvqa_hr")

_TEST1 = [
    ("presence", "Is there a building?", "yes"),
    ("comp", "Are there less roads than buildings?", "no"),
    ("count", "How many buildings are there?", "12"),
    ("area", "What is the area covered by roads?", "0m2"),
    ("area", "What is the area of buildings?", "1500m2"),
]
_TEST2 = [("presence", "Is there a park?", "no"), ("comp", "Is the number of roads equal to 3?", "yes")]
EXAMPLE = _rsvqa.example(
    IMAGES,
    {FILES["test1"]: _TEST1, FILES["test2"]: _TEST2},
    good=["yes", "No", "80", "0", "2000"],
    bad=["Yes, there is", "yes", "0", "0m2", "1500m2"],
)
