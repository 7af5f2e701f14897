"""DIOR-RSVG: find the object that a phrase describes in an aerial image, from the authors' own files.

The raw folder holds ``Annotations/*.xml``, ``JPEGImages/*.jpg`` and ``train.txt``, ``val.txt``, ``test.txt``, beside
them or in ``DIOR_RSVG/`` (see ``mini_internvl/benchmarks/_dior.py``). A box is asked for as the benchmark asks, and
answered in thousandths of the image's sides. A box that leaves its image is a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import _dior
from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "dior-rsvg"
TITLE = "Objects in aerial images, by phrase (DIOR-RSVG)"
SPLITS = ("train", "validation")
RECIPE = AdaptRecipe()
BENCHMARKS = {"dior_rsvg": DomainBenchmark(test="test", validation="validation")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 objects of one image a sample; a fault for each object whose box or phrase cannot be used."""
    yield from samples(_dior.read_original(Path(raw), chosen("split", split, SPLITS), inside=True), SOURCE)


_SHIP = ("Detect <ref>A red ship</ref>", "<ref>A red ship</ref><box>[[83, 250, 417, 750]]</box>")
_DAM = ("Detect <ref>the dam below</ref>", "<ref>the dam below</ref><box>[[0, 500, 1000, 1000]]</box>")
_PIER = ("Detect <ref>a pier</ref>", "<ref>a pier</ref><box>[[500, 500, 750, 625]]</box>")
EXAMPLE = DomainExample(
    files={
        "Annotations/00001.xml": _dior.annotation(
            "00001.jpg",
            ("A red ship", (10, 20, 50, 60)),
            ("not in the lists", (0, 0, 9, 9)),
            ("the dam below", (0, 40, 120, 80)),
        ),
        "Annotations/00002.xml": _dior.annotation(
            "00002.jpg",
            ("swapped", (50, 20, 10, 60)),
            ("outside", (100, 0, 121, 9)),
            ("", (0, 0, 9, 9)),
            ("a pier", (60, 40, 90, 50)),
        ),
        "Annotations/00003.xml": _dior.annotation("00003.jpg", ("its image is missing", (0, 0, 9, 9))),
        "train.txt": "0\n2\n3\n4\n5\n7\n",
        "val.txt": "6\n",
    },
    images={f"JPEGImages/0000{n}.jpg": ExampleImage(seed=n) for n in (1, 2)},
    samples={
        "train": [expected(SOURCE, "0", "JPEGImages/00001.jpg", _SHIP, _DAM)],
        "validation": [expected(SOURCE, "6", "JPEGImages/00002.jpg", _PIER)],
    },
    faults={"train": 4, "validation": 0},
)
