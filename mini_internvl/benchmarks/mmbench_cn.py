"""MMBench in Chinese (v1.0): seeing, locating, comparing, reasoning; asked in all rotations of the options.

Files: ``mmbench_dev_cn_20231003.tsv`` with answers, ``mmbench_test_cn_20231003.tsv`` for the server at
mmbench.opencompass.org.cn. The paper prints the test set, so its number comes from the server; the development set is
scored here by the same rules. Rules, traps and metrics: :mod:`mini_internvl.benchmarks._mmbench`.
"""

from __future__ import annotations

from functools import partial

from mini_internvl.benchmarks import _mmbench

TITLE = "MMBench CN"
FILES = {"dev": "mmbench_dev_cn_20231003.tsv", "test": "mmbench_test_cn_20231003.tsv"}
SPLITS, UNSCORED, PROTOCOLS = _mmbench.SPLITS, _mmbench.UNSCORED, _mmbench.PROTOCOLS
PRIMARY_METRIC = _mmbench.PRIMARY_METRIC

items = partial(_mmbench.read_items, "mmbench_cn", FILES, True)
score = _mmbench.make_score("mmbench_cn")
right, together, export = _mmbench.right, _mmbench.together, _mmbench.export

EXAMPLE = _mmbench.example(
    FILES,
    [
        ("coarse_perception", "框里画的是什么？|圆盘|星星|树|None"),
        ("finegrained_perception (instance-level)", "圆盘在中间的左边吗？|不在左边|是", "中间是对角线相交的地方。"),
        ("logic_reasoning", "天黑以后招牌会怎么样？|不亮|很亮|变蓝"),
        ("relation_reasoning", "哪一个是边框？|外面的线|里面的图形"),
    ],
    bad="B|是|很亮||C|A. 是|变蓝|(A)|树|我不确定。|A",
)
