"""LLaVA-Instruct-ZH: conversations, descriptions and reasoning about photographs, in Chinese.

The raw folder holds ``llava_instruct_150k_zh.json`` (openbmb/llava_zh on the Hugging Face hub) or InternVL's ``.jsonl``
of that name, and COCO's images ``train2017``, below ``coco`` or directly. Rows are LLaVA's. There is no test set of
this form: MMBench in Chinese, which the paper prints, measures what is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import mmbench_cn
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._questions import Images, needed
from mini_internvl.data import Fault
from mini_internvl.data.files import scan
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._conversations import conversation, example_row, expected
from mini_internvl.records import Sample

SOURCE = "llava-zh"
TITLE = "Photographs, in Chinese (LLaVA-Instruct-ZH)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = {"mmbench_cn": DomainBenchmark(test="dev")}
FILES = ("llava_instruct_150k_zh.json", "llava_instruct_150k_zh.jsonl")
FOLDERS = ("coco/train2017", "train2017", "coco", "data/coco", "images", "")


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a conversation; a fault for a row without its image, or with an empty turn."""
    chosen("split", split, SPLITS)
    path = needed(Path(raw), FILES[0], "openbmb/llava_zh on the Hugging Face hub", *FILES[1:])
    images = Images(*(Path(raw) / folder for folder in FOLDERS))
    for row in scan(path):
        yield row if isinstance(row, Fault) else conversation(row, images, source=SOURCE)


EXAMPLE = DomainExample(
    files={
        FILES[0]: [
            example_row("000000000009.jpg", "<image>\n图中有什么？", "一个装着食物的盒子。", "有水果吗？", "有。"),
            example_row("000000000009.jpg", "请描述这张图片。\n<image>", "盒子里有西兰花、面包和水果。"),
            example_row("000000000009.jpg", "<image>\n有回答吗？", " "),
            example_row("000000000025.jpg", "<image>\n图片在吗？", "不在。"),
            {"id": "9", "image": "000000000009.jpg", "conversations": []},
            {"id": "9", "conversations": example_row("", "没有图片？", "没有。")["conversations"]},
            "没有对象",
        ],
        **mmbench_cn.EXAMPLE.files,
    },
    images={"coco/train2017/000000000009.jpg": ExampleImage(), **mmbench_cn.EXAMPLE.images},
    samples={
        "train": [
            expected(
                SOURCE, "1", "coco/train2017/000000000009.jpg",
                "图中有什么？", "一个装着食物的盒子。", "有水果吗？", "有。",
            ),
            expected(
                SOURCE, "2", "coco/train2017/000000000009.jpg",
                "请描述这张图片。\n<image>", "盒子里有西兰花、面包和水果。",
            ),
        ]
    },
    faults={"train": 5},
)  # fmt: skip
