"""SLAKE: questions in English and Chinese about radiology images.

The raw folder holds ``train.json``, ``validate.json``, ``test.json`` and the images in ``imgs``
(https://www.med-vqa.com/slake). The benchmark's file says how they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import slake
from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "slake"
TITLE = "Radiology images (SLAKE)"
SPLITS = ("train", "validation")
RECIPE = AdaptRecipe()
BENCHMARKS = {"slake": DomainBenchmark(test="test", validation="validation")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 questions about one image a sample; a fault for each question without answer or image."""
    yield from samples(slake.read(raw, chosen("split", split, SPLITS)), SOURCE)


_SHORT = "Answer the question using a single word or phrase."
_row = slake.example_row
EXAMPLE = DomainExample(
    files={
        "train.json": [
            _row(1, "What modality is used?", "MRI", "OPEN", "en"),
            _row(2, "图中有肝脏吗？", "有", "CLOSED", "zh"),
            _row(3, "Is there an answer?", " ", "CLOSED", "en"),
            _row(4, "Is the image there?", "No", "CLOSED", "en", img_name="xmlab9/source.jpg"),
            "no object",
        ],
        "validate.json": [_row(5, "Which organ is shown?", "Brain", "OPEN", "en")],
    },
    images={"imgs/xmlab1/source.jpg": ExampleImage()},
    samples={
        "train": [
            expected(
                SOURCE,
                "1",
                "imgs/xmlab1/source.jpg",
                (f"What modality is used?\n{_SHORT}", "MRI"),
                ("图中有肝脏吗？\n请用一个词或短语回答问题。", "有"),
            )
        ],
        "validation": [expected(SOURCE, "5", "imgs/xmlab1/source.jpg", (f"Which organ is shown?\n{_SHORT}", "Brain"))],
    },
    faults={"train": 3, "validation": 0},
)
