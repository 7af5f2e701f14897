"""Quilt-1M: pathology images with captions.

The raw folder holds ``quilt_1M_lookup.csv`` (image_path, caption, split, and more that is not read), the images in
``quilt_1m`` or ``images``, and the files of GMAI-MMBench. The file's splits are train and val.
Source: wisdomikezogwo/quilt1m.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._questions import Images, needed, said
from mini_internvl.data import Fault
from mini_internvl.data.files import scan
from mini_internvl.domains import AdaptRecipe, DomainExample, ExampleImage, _captions
from mini_internvl.records import Sample

SOURCE = "quilt-1m"
TITLE = "Pathology images (Quilt-1M)"
NAMES = {"train": "train", "validation": "val"}
SPLITS = tuple(NAMES)
RECIPE = AdaptRecipe()
BENCHMARKS = _captions.BENCHMARKS
FILE = "quilt_1M_lookup.csv"
FOLDERS = ("quilt_1m", "images", "images/quilt_1m", "")


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample an image; a fault for each without image or caption, and for a row that is no row of the table."""
    wanted = NAMES[chosen("split", split, SPLITS)]
    path = needed(Path(raw), FILE, "https://github.com/wisdomikezogwo/quilt1m")
    images = Images(*(Path(raw) / folder for folder in FOLDERS))
    for row in scan(path):
        if isinstance(row, Fault):
            if split == SPLITS[0]:  # it says no split
                yield row
        elif said(row.raw, "split") == wanted:
            name, text = said(row.raw, "image_path"), said(row.raw, "caption")
            yield _captions.captioned(row, name, text, images, kind="slide", source=SOURCE)


EXAMPLE = DomainExample(
    files={
        FILE: "\n".join(
            [
                ",caption,image_path,subset,split",
                '0,"Adipose tissue, with necrosis.",a.jpg,quilt,train',
                "1,,a.jpg,quilt,train",
                "2,The image is missing.,b.jpg,quilt,train",
                "3,One cell too few.,a.jpg,quilt",
                "4,A gland.,a.jpg,openpath,val",
                "",
            ]
        ),
        **_captions.BENCHMARK_FILES,
    },
    images={"quilt_1m/a.jpg": ExampleImage()},
    samples={
        "train": [
            _captions.pair(
                SOURCE,
                "1",
                ["quilt_1m/a.jpg"],
                "What can be seen in this image of tissue?",
                "Adipose tissue, with necrosis.",
            )
        ],
        "validation": [_captions.pair(SOURCE, "5", ["quilt_1m/a.jpg"], "Write a caption for this slide.", "A gland.")],
    },
    faults={"train": 3, "validation": 0},
)
