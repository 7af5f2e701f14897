"""MMBench in Chinese (v1.0): seeing, locating, comparing, reasoning; asked in all rotations of the options.

Files: ``mmbench_dev_cn_20231003.tsv`` with answers, ``mmbench_test_cn_20231003.tsv`` for the server at
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

TITLE = "MMBench CN"
FILES = {"dev": "mmbench_dev_cn_20231003.tsv", "test": "mmbench_test_cn_20231003.tsv"}


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a rotation, ids are the file's indices; DataError names what is wrong with the file."""
    split, protocol = chosen("split", split, SPLITS), chosen("protocol", protocol, PROTOCOLS)
    chinese = True if protocol == "paper" else None
    return _mmbench.read_items(root, "mmbench_cn", FILES[split], split, chinese)


def score(
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Judge | None = None,
) -> Score:
    """``accuracy``, ``ability/CP`` to ``ability/AR`` and ``category/...``, over questions, in per cent."""
    return _mmbench.score_items("mmbench_cn", items, predictions, chosen("protocol", protocol, PROTOCOLS), judge)


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
            question="框里画的是什么？",
            options=["圆盘", "星星", "树", "None"],
            ability="coarse_perception",
            category="image_topic",
        ),
        Question(
            index=1,
            question="圆盘在中间的左边吗？",
            options=["不在左边", "是"],
            ability="finegrained_perception (instance-level)",
            category="object_localization",
            hint="中间是对角线相交的地方。",
        ),
        Question(
            index=7,
            question="天黑以后招牌会怎么样？",
            options=["不亮", "很亮", "变蓝"],
            ability="logic_reasoning",
            category="physical_property_reasoning",
        ),
        Question(
            index=12,
            question="哪一个是边框？",
            options=["外面的线", "里面的图形"],
            ability="relation_reasoning",
            category="nature_relation",
        ),
    ],
    ["B", "是", "很亮", "", "C", "A. 是", "变蓝", "(A)", "树", "我不确定。", "A"],
)
