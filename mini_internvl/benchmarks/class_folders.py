"""Class folders: name the class of an image, among the classes that the question lists (EuroSAT, RESISC45, UC Merced).

The data folder holds one folder of images a class (``_classes.py`` says how splits are told apart). The prompt is the
paper's wording for scene classification. An answer is right if it is the class in words, whatever its case and
punctuation; a sentence around it makes it wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import _classes, _questions
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._tally import scorer
from mini_internvl.metrics.short_answers import same_words
from mini_internvl.records import Item

TITLE = "Class folders"
SPLITS = ("test", "validation", "train")
PROTOCOLS = {"words": "The class in words, whatever its case and the punctuation at its ends."}
PRIMARY_METRIC = "accuracy"


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item an image, id ``CLASS/NAME``; DataError names files that are no images."""
    split = chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    own = Path(root) / "class_folders"
    return _questions.items(_classes.read_classes(own if own.is_dir() else Path(root), split), max_new_tokens=50)


def right(item: Item, text: str, protocol: str = "words") -> bool:
    """Whether the answer is the class."""
    return same_words(text, item.reference["answer"])


score = scorer(
    "class_folders",
    PROTOCOLS,
    right,
    metrics=lambda item: ("accuracy", f"class/{item.reference['answer']}"),
)

EXAMPLE = WorkedExample(
    files={},
    images={
        f"test/{name}/{number}.jpg": ExampleImage(width=64, height=64, seed=seed + number)
        for seed, name in enumerate(("AnnualCrop", "sea_lake"))
        for number in (1, 2)
    }
    | {"train/AnnualCrop/3.jpg": ExampleImage(width=64, height=64)},
    good=["annual crop", "Annual Crop.", " sea lake", "SEA LAKE"],
    bad=["sea lake", "", "a sea lake", "lake"],
)
