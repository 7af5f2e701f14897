"""GeoQA+: multiple choice about geometric figures, in Chinese and English.

The raw folder holds ``geoqa+.jsonl`` and its images ``images/``, as InternVL converted and published them
(``opensource`` and ``geoqa+_images.zip`` of OpenGVLab/InternVL on the Hugging Face hub), also below ``geoqa+``. Its
rows are LLaVA's. Unusual: the authors publish pickles alone (SCNU203/GeoQA-Plus), which can run code when they are
opened, so they are refused by name. MathVista, which the paper prints, has questions of this set among its own and
measures what is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import mathvista
from mini_internvl.benchmarks._files import chosen, refuse_pickles
from mini_internvl.benchmarks._questions import Images, needed
from mini_internvl.data import Fault
from mini_internvl.data.files import scan
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._conversations import conversation, example_row, expected
from mini_internvl.records import Sample

SOURCE = "geoqa-plus"
TITLE = "Geometry (GeoQA+)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = {"mathvista": DomainBenchmark(test="testmini")}
FILE = "geoqa+.jsonl"
FOLDERS = ("geoqa+", "data/geoqa+", "", "geoqa+/images", "images")


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a problem; a fault for a row without its figure, or with an empty turn."""
    chosen("split", split, SPLITS)
    raw = Path(raw)
    found = [f"{folder}{FILE}" for folder in ("", "opensource/", "geoqa+/")]
    if not any((raw / name).is_file() for name in found):
        refuse_pickles(raw, f"InternVL's {FILE}")
    path = needed(raw, found[0], "OpenGVLab/InternVL on the Hugging Face hub", *found[1:])
    images = Images(*(raw / folder for folder in FOLDERS))
    for row in scan(path):
        yield row if isinstance(row, Fault) else conversation(row, images, source=SOURCE)


_CHOOSE = "\nA. 50°\nB. 40°\nC. 130°\nD. 60°\n请直接回答选项字母。"
EXAMPLE = DomainExample(
    files={
        FILE: [
            example_row("images/0.png", f"<image>\n如图，∠1=40°，求∠2的度数。{_CHOOSE}", "A"),
            example_row("images/0.png", "<image>\nHow long is AB?\nA. 3\nB. 4", "B. 4"),
            example_row("images/0.png", "<image>\nIs there an answer?", ""),
            example_row("images/9.png", "<image>\nIs the figure there?", "No."),
            {"id": 5, "image": "images/0.png", "conversations": "A"},
        ],
        **mathvista.EXAMPLE.files,
    },
    images={"geoqa+/images/0.png": ExampleImage(), **mathvista.EXAMPLE.images},
    samples={
        "train": [
            expected(SOURCE, "1", "geoqa+/images/0.png", f"如图，∠1=40°，求∠2的度数。{_CHOOSE}", "A"),
            expected(SOURCE, "2", "geoqa+/images/0.png", "How long is AB?\nA. 3\nB. 4", "B. 4"),
        ]
    },
    faults={"train": 3},
)
