"""MMBench in English (v1.0): seeing, locating, comparing, reasoning; asked in all rotations of the options.

Files: ``mmbench_dev_20230712.tsv`` with answers, ``mmbench_test_en_20231003.tsv`` for the server at
mmbench.opencompass.org.cn. The paper prints the test set, so its number comes from the server; the development set is
scored here by the same rules. Rules, traps and metrics: :mod:`mini_internvl.benchmarks._mmbench`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mini_internvl.benchmarks import _mmbench
from mini_internvl.benchmarks._choices import Judge
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._mmbench import LOWER_IS_BETTER, PRIMARY_METRIC, PROTOCOLS, SPLITS, UNSCORED, Question
from mini_internvl.records import Item, Prediction, Score

__all__ = ("LOWER_IS_BETTER", "PRIMARY_METRIC", "PROTOCOLS", "SPLITS", "UNSCORED")

TITLE = "MMBench EN"
FILES = {"dev": "mmbench_dev_20230712.tsv", "test": "mmbench_test_en_20231003.tsv"}


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a rotation, ids are the file's indices; DataError names what is wrong with the file."""
    split, protocol = chosen("split", split, SPLITS), chosen("protocol", protocol, PROTOCOLS)
    chinese = False if protocol == "paper" else None
    return _mmbench.read_items(root, "mmbench_en", FILES[split], split, chinese)


def score(
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Judge | None = None,
) -> Score:
    """``accuracy``, ``ability/CP`` to ``ability/AR`` and ``category/...``, over questions, in per cent."""
    return _mmbench.score_items("mmbench_en", items, predictions, chosen("protocol", protocol, PROTOCOLS), judge)


def right(item: Item, text: str) -> bool:
    """Whether the answer to one rotation is right; a question counts only with all of them."""
    return _mmbench.row_right(item, text)


def together(item: Item) -> str:
    """The question, whose rotations count together."""
    return _mmbench.question_of(item)


def export(items: Iterable[Item], predictions: Iterable[Prediction], folder: Path) -> list[Path]:
    """The sheet for MMBench's server."""
    return _mmbench.export_items(items, predictions, folder)


EXAMPLE = _mmbench.example(
    FILES["dev"],
    FILES["test"],
    [
        Question(
            index=0,
            question="What is drawn in the frame?",
            options=["a disc", "a star", "a tree", "None"],
            ability="coarse_perception",
            category="image_topic",
        ),
        Question(
            index=1,
            question="Is the disc left of the middle?",
            options=["no", "yes"],
            ability="finegrained_perception (instance-level)",
            category="object_localization",
            hint="The middle is where the diagonals cross.",
        ),
        Question(
            index=7,
            question="How would the café's sign look in the dark?",
            options=["unlit", "“bright”", "blue"],
            ability="logic_reasoning",
            category="physical_property_reasoning",
        ),
        Question(
            index=12,
            question="Which of the two is the frame?",
            options=["the outline", "the filled shape"],
            ability="finegrained_perception (cross-instance)",
            category="spatial_relationship",
        ),
    ],
    ["B", "yes", "“bright”", "", "C", "A. yes", "blue", "(A)", "A tree", "I cannot tell.", "A"],
)
