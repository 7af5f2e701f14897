"""PMC-OA: figures of medical articles with their captions.

The raw folder holds ``pmc_oa.jsonl`` (image, caption, and more that is not read), the images in
``caption_T060_filtered_top4_sep_v0_subfigures`` or ``images`` (axiong/pmc_oa on the Hugging Face hub), and the files of
GMAI-MMBench. There is one split.
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

SOURCE = "pmc-oa"
TITLE = "Medical figures (PMC-OA)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = _captions.BENCHMARKS
FILE = "pmc_oa.jsonl"
FOLDERS = ("caption_T060_filtered_top4_sep_v0_subfigures", "images", "")


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a figure; a fault for each without image or caption."""
    chosen("split", split, SPLITS)
    path = needed(Path(raw), FILE, "axiong/pmc_oa on the Hugging Face hub")
    images = Images(*(Path(raw) / folder for folder in FOLDERS))
    for row in scan(path):
        if isinstance(row, Fault):
            yield row
        else:
            name, text = said(row.raw, "image"), said(row.raw, "caption")
            yield _captions.captioned(row, name, text, images, kind="figure", source=SOURCE)


EXAMPLE = DomainExample(
    files={
        FILE: [
            {"image": "PMC1_fig1_1.jpg", "caption": "Axial CT\n of the chest.", "alignment_type": "full"},
            {"image": "PMC1_fig1_1.jpg", "caption": ""},
            {"image": "PMC2_fig1_1.jpg", "caption": "The image is missing."},
            {"caption": "No image."},
        ],
        **_captions.BENCHMARK_FILES,
    },
    images={"images/PMC1_fig1_1.jpg": ExampleImage()},
    samples={
        "train": [
            _captions.pair(
                SOURCE,
                "1",
                ["images/PMC1_fig1_1.jpg"],
                "Give a short description of the image.",
                "Axial CT of the chest.",
            )
        ]
    },
    faults={"train": 3},
)
