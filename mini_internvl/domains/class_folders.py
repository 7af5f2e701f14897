"""Class folders: name the class of an image, as in EuroSAT, RESISC45 or UC Merced.

The raw folder holds one folder of images a class, or ``train``, ``val`` and ``test`` with such folders each; without
these a hash of ``CLASS/NAME`` makes the splits (``mini_internvl/benchmarks/_classes.py``). The question lists the
classes, in the paper's wording.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks._classes import read_classes
from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "class-folders"
TITLE = "Class folders"
SPLITS = ("train", "validation")
RECIPE = AdaptRecipe()
BENCHMARKS = {"class_folders": DomainBenchmark(test="test", validation="validation")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample an image; a fault for each file in a class folder that is no image."""
    yield from samples(read_classes(Path(raw), chosen("split", split, SPLITS)), SOURCE)


_ASKED = (
    "Classify the image within one of the given classes: forest, dense residential. "
    "Answer with one word or short phrase."
)
_NAMES = ("train/Forest/1.jpg", "train/dense_residential/1.jpg", "val/Forest/2.jpg", "val/dense_residential/2.jpg")
EXAMPLE = DomainExample(
    files={"train/dense_residential/notes.txt": "no image"},
    images={
        name: ExampleImage(width=64, height=64, seed=seed) for seed, name in enumerate((*_NAMES, "test/Forest/3.jpg"))
    },
    samples={
        "train": [
            expected(SOURCE, "Forest/1.jpg", _NAMES[0], (_ASKED, "forest")),
            expected(SOURCE, "dense_residential/1.jpg", _NAMES[1], (_ASKED, "dense residential")),
        ],
        "validation": [
            expected(SOURCE, "Forest/2.jpg", _NAMES[2], (_ASKED, "forest")),
            expected(SOURCE, "dense_residential/2.jpg", _NAMES[3], (_ASKED, "dense residential")),
        ],
    },
    faults={"train": 1, "validation": 0},
)
