"""PMC-VQA: multiple choice about figures of medical articles.

The raw folder holds ``train.csv`` and ``test.csv``, or ``train_2.csv`` and ``test_2.csv``, and the images in
``images``, ``images_2`` or ``figures`` (xmcmic/PMC-VQA on the Hugging Face hub). The benchmark's file says how they
are read: the answer that is taught is the letter. There is no validation split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import pmc_vqa
from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._questions import expected, samples
from mini_internvl.records import Sample

SOURCE = "pmc-vqa"
TITLE = "Medical figures (PMC-VQA)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = {"pmc_vqa": DomainBenchmark(test="test")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 questions about one image a sample; a fault for each question without answer or image."""
    yield from samples(pmc_vqa.read(raw, chosen("split", split, SPLITS)), SOURCE)


_ASKED = """What modality is shown?
A. CT
B. MRI
C. X-ray
D. Ultrasound
Answer with the option's letter from the given choices directly."""
EXAMPLE = DomainExample(
    files={
        "train_2.csv": "\n".join(
            [
                "index,Figure_path,Caption,Question, Choice A ,Choice B,Choice C,Choice D,Answer,split",
                "0,PMC1_F1.jpg,A scan.,What modality is shown?, A: CT , B:MRI, C:X-ray, D:Ultrasound,B,train",
                "1,PMC1_F1.jpg,A scan.,What is the answer?, A:CT, B:MRI, C:X-ray, D:Ultrasound,E,train",
                "2,PMC9_F1.jpg,A scan.,Is the image there?, A:Yes, B:No, C:, D:,B,train",
                "3,PMC1_F1.jpg,A scan., , A:Yes, B:No, C:, D:,B,train",
                "",
            ]
        )
    },
    images={"figures/PMC1_F1.jpg": ExampleImage()},
    samples={"train": [expected(SOURCE, "1", "figures/PMC1_F1.jpg", (_ASKED, "B"))]},
    faults={"train": 3},
)
