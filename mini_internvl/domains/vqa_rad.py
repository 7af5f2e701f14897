"""VQA-RAD: questions by clinicians about radiology images.

The raw folder holds ``VQA_RAD Dataset Public.json`` and the images in ``VQA_RAD Image Folder`` (https://osf.io/89kps).
The benchmark's file says how they are read; questions whose ``phrase_type`` begins with ``test_`` are its own. There
is no validation split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import vqa_rad
from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "vqa-rad"
TITLE = "Radiology images (VQA-RAD)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = {"vqa_rad": DomainBenchmark(test="test")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 questions about one image a sample; a fault for each question without answer or image."""
    yield from samples(vqa_rad.read(raw, chosen("split", split, SPLITS)), SOURCE)


_SHORT = "Answer the question using a single word or phrase."
_row = vqa_rad.example_row
EXAMPLE = DomainExample(
    files={
        vqa_rad.FILE: [
            _row(1, "freeform", "Is there a mass?", "No", "CLOSED"),
            _row(2, "test_freeform", "Is there a fracture?", "Yes", "CLOSED"),
            _row(3, "para", "How many masses are there?", 2, "OPEN "),
            _row(4, "freeform", "Is there an answer?", "", "CLOSED"),
            _row(5, "freeform", "Is the image there?", "No", "CLOSED", image_name="synpic9.jpg"),
        ]
    },
    images={f"{vqa_rad.IMAGES}/synpic1.jpg": ExampleImage()},
    samples={
        "train": [
            expected(
                SOURCE,
                "1",
                f"{vqa_rad.IMAGES}/synpic1.jpg",
                (f"Is there a mass?\n{_SHORT}", "No"),
                (f"How many masses are there?\n{_SHORT}", "2"),
            )
        ]
    },
    faults={"train": 2},
)
