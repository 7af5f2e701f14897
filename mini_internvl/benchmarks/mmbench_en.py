"""MMBench in English (v1.0): seeing, locating, comparing, reasoning; asked in all rotations of the options.

Files: ``mmbench_dev_20230712.tsv`` with answers, ``mmbench_test_en_20231003.tsv`` for the server at
mmbench.opencompass.org.cn. The paper prints the test set, so its number comes from the server; the development set is
scored here by the same rules. Rules, traps and metrics: :mod:`mini_internvl.benchmarks._mmbench`.
"""

from __future__ import annotations

from functools import partial

from mini_internvl.benchmarks import _mmbench

TITLE = "MMBench EN"
FILES = {"dev": "mmbench_dev_20230712.tsv", "test": "mmbench_test_en_20231003.tsv"}
SPLITS, UNSCORED, PROTOCOLS = _mmbench.SPLITS, _mmbench.UNSCORED, _mmbench.PROTOCOLS
PRIMARY_METRIC = _mmbench.PRIMARY_METRIC

items = partial(_mmbench.read_items, "mmbench_en", FILES, False)
score = _mmbench.make_score("mmbench_en")
right, together, export = _mmbench.right, _mmbench.together, _mmbench.export

EXAMPLE = _mmbench.example(
    FILES,
    [
        ("coarse_perception", "What is drawn in the frame?|a disc|a star|a tree|None"),
        (
            "finegrained_perception (instance-level)",
            "Is the disc left of the middle?|no|yes",
            "The middle is where the diagonals cross.",
        ),
        ("logic_reasoning", "How would the café's sign look in the dark?|unlit|“bright”|blue"),
        ("finegrained_perception (cross-instance)", "Which of the two is the frame?|the outline|the filled shape"),
    ],
    bad="B|yes|“bright”||C|A. yes|blue|(A)|A tree|I cannot tell.|A",
)
