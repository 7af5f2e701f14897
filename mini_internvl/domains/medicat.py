"""MedICaT: figures of medical articles with their captions.

The raw folder holds ``s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl`` (pdf_hash, fig_uri, s2_caption or
s2orc_caption, and more that is not read), the images ``figures/HASH_URI``, and the files of GMAI-MMBench. There is one
split. Source: allenai/medicat.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._questions import Images, fault, lacking, needed, said
from mini_internvl.data import Fault
from mini_internvl.data.files import scan
from mini_internvl.domains import AdaptRecipe, DomainExample, ExampleImage, _captions
from mini_internvl.records import Sample

SOURCE = "medicat"
TITLE = "Medical figures (MedICaT)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = _captions.BENCHMARKS
FILE = "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a figure; a fault for each without image or caption."""
    chosen("split", split, SPLITS)
    path = needed(Path(raw), FILE, "https://github.com/allenai/medicat")
    images = Images(Path(raw) / "figures", Path(raw))
    for row in scan(path):
        if isinstance(row, Fault):
            yield row
        elif wrong := lacking(row.raw, "pdf_hash", "fig_uri"):
            yield fault(row, wrong)
        else:
            name = f"{said(row.raw, 'pdf_hash')}_{said(row.raw, 'fig_uri')}"
            text = said(row.raw, "s2_caption") or said(row.raw, "s2orc_caption")
            yield _captions.captioned(row, name, text, images, kind="figure", source=SOURCE)


EXAMPLE = DomainExample(
    files={
        FILE: [
            {"pdf_hash": "57c9", "fig_uri": "1-Figure1-1.png", "s2_caption": "Fig. 1. A cyst.", "radiology": True},
            {"pdf_hash": "57c9", "fig_uri": "1-Figure1-1.png", "s2_caption": "", "s2orc_caption": None},
            {"pdf_hash": "57c9", "fig_uri": "2-Figure2-1.png", "s2_caption": "The image is missing."},
            {"pdf_hash": "57c9", "s2_caption": "No figure."},
        ],
        **_captions.BENCHMARK_FILES,
    },
    images={"figures/57c9_1-Figure1-1.png": ExampleImage()},
    samples={
        "train": [
            _captions.pair(
                SOURCE,
                "1",
                ["figures/57c9_1-Figure1-1.png"],
                "Give a short description of the image.",
                "Fig. 1. A cyst.",
            )
        ]
    },
    faults={"train": 3},
)
