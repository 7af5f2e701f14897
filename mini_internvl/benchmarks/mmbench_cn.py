"""MMBench in Chinese (v1.0): seeing, locating, comparing, reasoning; asked in all rotations of the options.

Files: ``mmbench_dev_cn_20231003.tsv`` with answers, ``mmbench_test_cn_20231003.tsv`` for the server at
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

TITLE = "MMBench CN"
FILES = {"dev": "mmbench_dev_cn_20231003.tsv", "test": "mmbench_test_cn_20231003.tsv"}

items = partial(_mmbench.read_items, "mmbench_cn", FILES, True)
score = partial(_mmbench.score_items, "mmbench_cn")

EXAMPLE = _mmbench.example(
    FILES["dev"],
    FILES["test"],
    [
        Question(0, "框里画的是什么？", ["圆盘", "星星", "树", "None"], "coarse_perception", "image_topic"),
        Question(
            1,
            "圆盘在中间的左边吗？",
            ["不在左边", "是"],
            "finegrained_perception (instance-level)",
            "object_localization",
            "中间是对角线相交的地方。",
        ),
        Question(
            7, "天黑以后招牌会怎么样？", ["不亮", "很亮", "变蓝"], "logic_reasoning", "physical_property_reasoning"
        ),
        Question(12, "哪一个是边框？", ["外面的线", "里面的图形"], "relation_reasoning", "nature_relation"),
    ],
    ["B", "是", "很亮", "", "C", "A. 是", "变蓝", "(A)", "树", "我不确定。", "A"],
)
