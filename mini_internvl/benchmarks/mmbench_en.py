"""MMBench in English (v1.0): seeing, locating, comparing, reasoning; asked in all rotations of the options.

Files: ``mmbench_dev_20230712.tsv`` with answers, ``mmbench_test_en_20231003.tsv`` for the server at
mmbench.opencompass.org.cn. The paper prints the test set, so its number comes from the server; the development set is
scored here by the same rules. Rules, traps and metrics: :mod:`mini_internvl.benchmarks._mmbench`.
"""

from __future__ import annotations

from functools import partial

from mini_internvl.benchmarks import _mmbench
from mini_internvl.benchmarks._mmbench import (
    LOWER_IS_BETTER,
    PRIMARY_METRIC,
    PROTOCOLS,
    SPLITS,
    UNSCORED,
    Question,
    export,
    right,
    together,
)

__all__ = ["LOWER_IS_BETTER", "PRIMARY_METRIC", "PROTOCOLS", "SPLITS", "UNSCORED", "export", "right", "together"]

TITLE = "MMBench EN"
FILES = {"dev": "mmbench_dev_20230712.tsv", "test": "mmbench_test_en_20231003.tsv"}

items = partial(_mmbench.read_items, "mmbench_en", FILES, False)
score = partial(_mmbench.score_items, "mmbench_en")

EXAMPLE = _mmbench.example(
    FILES["dev"],
    FILES["test"],
    [
        Question(
            0, "What is drawn in the frame?", ["a disc", "a star", "a tree", "None"], "coarse_perception", "image_topic"
        ),
        Question(
            1,
            "Is the disc left of the middle?",
            ["no", "yes"],
            "finegrained_perception (instance-level)",
            "object_localization",
            "The middle is where the diagonals cross.",
        ),
        Question(
            7,
            "How would the café's sign look in the dark?",
            ["unlit", "“bright”", "blue"],
            "logic_reasoning",
            "physical_property_reasoning",
        ),
        Question(
            12,
            "Which of the two is the frame?",
            ["the outline", "the filled shape"],
            "finegrained_perception (cross-instance)",
            "spatial_relationship",
        ),
    ],
    ["B", "yes", "“bright”", "", "C", "A. yes", "blue", "(A)", "A tree", "I cannot tell.", "A"],
)
