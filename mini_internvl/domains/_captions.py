"""Images with a text that describes them, as training samples: shared by the domains of captions and reports.

The question is drawn from the sample's id out of several wordings of its kind, so that it is the same on every run and
none is learnt by heart. Medical captions have no test set of their own here: as in the paper, GMAI-MMBench measures
what they teach.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from mini_internvl.benchmarks import gmai_mmbench
from mini_internvl.benchmarks._questions import Images, fault, number
from mini_internvl.data import Fault, Row
from mini_internvl.domains import DomainBenchmark
from mini_internvl.records import Message, Part, Sample

BENCHMARKS = {"gmai_mmbench": DomainBenchmark(test="val")}
"""The benchmark's file lies in the raw folder too."""
BENCHMARK_FILES = {gmai_mmbench.VAL[0]: gmai_mmbench.EXAMPLE.files[gmai_mmbench.VAL[0]]}
"""It in small, for the examples."""
WORDINGS: Mapping[str, Sequence[str]] = {
    "figure": (
        "Describe this medical image.",
        "What does this medical image show?",
        "Write a caption for this figure.",
        "Give a short description of the image.",
    ),
    "slide": (
        "Describe this pathology image.",
        "What does this histopathology image show?",
        "Write a caption for this slide.",
        "What can be seen in this image of tissue?",
    ),
    "page": (
        "Read all the text in the image.",
        "What text is in the image?",
        "Transcribe the text in the image.",
    ),
    "chinese page": ("请读出图中的所有文字。", "图中写了什么？", "请转写图片中的文字。"),
    "report": (
        "Write the findings and the impression of a radiology report for this study.",
        "Write a radiology report for this examination.",
        "What does this radiograph show? Answer as a radiology report.",
    ),
}
"""The ways a description is asked for, by what is described."""


def described(
    row: Row, name: str, images: Sequence[str | bytes], text: str, *, kind: str, source: str
) -> Sample | Fault:
    """The sample of images, paths or contents, and their text; a fault where the text is empty."""
    text = " ".join(text.split()) if kind != "report" else text.strip()
    if not text:
        return fault(row, "there is no text to learn")
    return pair(source, name, images, random.Random(name).choice(WORDINGS[kind]), text)


def captioned(row: Row, image: str, text: str, places: Images, *, kind: str, source: str) -> Sample | Fault:
    """The sample of one image, by its name, and its caption; its id is the row's number, since images come again."""
    if (place := places.find(image)) is None:
        return fault(row, places.missing(image) if image else "it names no image")
    return described(row, number(row), [place], text, kind=kind, source=source)


def pair(source: str, name: str, images: Sequence[str | bytes], question: str, text: str) -> Sample:
    """The sample of images and their text."""
    shown: list[Part] = [{"type": "image", "image": image} for image in images]
    messages: list[Message] = [
        {"role": "user", "content": [*shown, {"type": "text", "text": question}]},
        {"role": "assistant", "content": text},
    ]
    return Sample(id=name, messages=messages, source=source)
