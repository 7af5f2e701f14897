"""FIT-RS-VQA: questions about objects and their relations in aerial images.

The raw folder holds ``train_instruction_vqa_400k.json`` and ``test_FITRS_vqa_eval.jsonl`` (ll-13/FIT-RS on the Hugging
Face hub), and the images ``imgv2_split_512_100_vaild/*.png``. The benchmark's file says how they are read. There is no
validation split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import fit_rs_vqa
from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "fit-rs-vqa"
TITLE = "Aerial images (FIT-RS-VQA)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = {"fit_rs_vqa": DomainBenchmark(test="test")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 questions about one image a sample; a fault for a row without its image, or with a box that is none."""
    chosen("split", split, SPLITS)
    yield from samples(fit_rs_vqa.read(Path(raw), fit_rs_vqa.TRAIN), SOURCE)


def _row(image: str, *turns: str) -> dict[str, Any]:
    """A row of the file, for the example."""
    spoken = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]
    return {"id": image, "image": image, "conversations": spoken}


_BOXED = "What is at <rbox>({<50><50><20><10>|<90>})</rbox>?"
EXAMPLE = DomainExample(
    files={
        fit_rs_vqa.TRAIN: [
            _row("1.png", "<image>\nIs there a ship?", "Yes", "How many cranes are there?", "2"),
            _row("1.png", f"<image>\n{_BOXED}", "a crane"),
            _row("2.png", "<image>\nIs there a car?", "No"),
            _row("9.png", "<image>\nIs the image there?", "No"),
            _row("2.png", "<image>\nWhat is at <rbox>({<150><50><20><10>|<90>})</rbox>?", "a car"),
            _row("2.png", "<image>\nIs there an answer?", ""),
            _row("2.png", "<image>\nIs there an answer?"),
        ]
    },
    images={f"{fit_rs_vqa.IMAGES}/{n}.png": ExampleImage(width=64, height=64, seed=n) for n in (1, 2)},
    samples={
        "train": [
            expected(
                SOURCE,
                "1",
                f"{fit_rs_vqa.IMAGES}/1.png",
                ("Is there a ship?", "Yes"),
                ("How many cranes are there?", "2"),
                ("What is at <box>[[450, 400, 550, 600]]</box>?", "a crane"),
            ),
            expected(SOURCE, "3", f"{fit_rs_vqa.IMAGES}/2.png", ("Is there a car?", "No")),
        ]
    },
    faults={"train": 4},
)
