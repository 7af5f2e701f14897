"""GeoChat-Instruct: conversations about aerial images, with boxes in questions and answers.

The raw folder holds ``GeoChat_Instruct.json``, a list of LLaVA's rows, and the images, in ``final_images_llava`` (as
the published archive has it, or below ``images``). Tasks stand in the questions as tags:

* ``[refer] where is <p>PHRASE</p> ?`` is answered with boxes: they get the question's phrase.
* ``[identify] ... {BOX} ...`` asks for what a box holds: the answer's phrase gets the question's box.
* ``[grounding] ...`` asks for a description with boxes: a sentence says so in its place.

Boxes become upright ones in thousandths (``mini_internvl/benchmarks/_regions.py``). There is one split, and no test
set of this form: the two benchmarks read theirs from the raw folder too (``docs/benchmarks``).
Source: mbzuai-oryx/GeoChat, ``docs/Data.md`` and ``geochat_demo.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _regions
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._questions import Images, fault, needed, number, said
from mini_internvl.data import Fault, Row
from mini_internvl.data.files import scan
from mini_internvl.data.rows import to_sample
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.inputs.images import image_dimensions
from mini_internvl.records import Message, Sample

SOURCE = "geochat"
TITLE = "Aerial images (GeoChat-Instruct)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = {"rsvqa_lr": DomainBenchmark(test="test"), "dior_rsvg": DomainBenchmark(test="test")}
FILE = "GeoChat_Instruct.json"
FOLDERS = (
    "final_images_llava",
    "images/final_images_llava",
    "images/GeoChat/images/final_images_llava",
    "share/softwares/kartik/GeoChat_finetuning/final_images_llava",
    "images",
    "",
)
GROUNDED = "Give the boxes of the objects that you name."
_TAG = re.compile(r"\[(refer|grounding|identify)\]\s*")


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a conversation; a fault for a row without its image, or with a box that cannot be used."""
    chosen("split", split, SPLITS)
    path = needed(Path(raw), FILE, "MBZUAI/GeoChat_Instruct on the Hugging Face hub")
    images = Images(*(Path(raw) / folder for folder in FOLDERS))
    for row in scan(path):
        yield row if isinstance(row, Fault) else _read(row, images)


def _read(row: Row, images: Images) -> Sample | Fault:
    name = said(row.raw, "image")
    if (place := images.find(name)) is None:
        return fault(row, images.missing(name))
    sample = to_sample(replace(row, raw={**row.raw, "image": place}), root=Path(), format="internvl", source=SOURCE)
    if isinstance(sample, Fault):
        return sample
    try:
        messages = _rewrite(sample.messages, lambda: image_dimensions(place))
        return replace(sample, id=number(row), messages=messages)  # ids of the file come again
    except ValueError as error:
        return fault(row, str(error))


def _rewrite(messages: Sequence[Message], size: _regions.Size) -> list[Message]:
    """The conversation with its tags and boxes in this family's form."""
    found: list[Message] = []
    task = phrase = box = ""
    for message in messages:
        content: Any = message["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        if message["role"] == "user":
            tag = _TAG.search(text)
            task, phrase = tag[1] if tag else "", _regions.phrase_of(text)
            said_now = _regions.tagged(_TAG.sub("", text).strip(), size)
            box = "".join(re.findall(r"<box>.*?</box>", said_now)[:1])
            said_now = f"{said_now} {GROUNDED}" if task == "grounding" else said_now
        else:
            said_now = _regions.tagged(text.strip(), size, phrase=phrase if task == "refer" else "")
            if task == "identify" and box and "<box>" not in said_now:
                said_now = re.sub("</ref>", f"</ref>{box}", said_now, count=1)
        if not said_now:
            raise ValueError("a turn holds no text")
        new = said_now if isinstance(content, str) else [*content[:-1], {**content[-1], "text": said_now}]
        found.append({"role": message["role"], "content": new})
    return found


def _row(image: str, *turns: str) -> dict[str, Any]:
    """A row of the file, for the example."""
    spoken = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]
    return {"id": image, "image": image, "conversations": spoken}


def _sample(name: str, *turns: str) -> Sample:
    """A sample of the example, whose image is the same for all."""
    image = {"type": "image", "image": "final_images_llava/a.jpg"}
    content: list[Any] = [[image, {"type": "text", "text": turns[0]}], *turns[1:]]
    messages: list[Message] = [
        {"role": ("user", "assistant")[n % 2], "content": said_now} for n, said_now in enumerate(content)
    ]
    return Sample(id=name, messages=messages, source=SOURCE)


EXAMPLE = DomainExample(
    files={
        FILE: [
            _row(
                "a.jpg",
                "<image>\n[refer] where is <p>a ship</p> ?",
                "{<10><20><30><40>|<0>}{<50><60><70><80>|<90>}",
                "\n[identify] the object in {<10><20><30><40>|<0>} is",
                "<p>1 ship at the left</p>",
            ),
            _row(
                "a.jpg",
                "<image>\n[grounding] describe this image",
                "There are <p>two docks</p> {<0><0><20><20>|<45>} at the top.",
            ),
            _row("a.jpg", "<image>\nIs there a road?", "Yes"),
            _row("b.jpg", "<image>\nIs the image there?", "No"),
            _row("a.jpg", "<image>\n[refer] <p>a car</p>", "{<77><981><83><990>|<29>}"),
            _row("a.jpg", "<image>\n[refer] <p>a car</p>", "{<1><2><3>|<4>}"),
            _row("a.jpg", "<image>\nIs there an answer?", " "),
            {"id": "a.jpg", "image": "a.jpg"},
        ]
    },
    images={"final_images_llava/a.jpg": ExampleImage(width=120, height=80)},
    samples={
        "train": [
            _sample(
                "1",
                "where is <ref>a ship</ref> ?",
                "<ref>a ship</ref><box>[[100, 200, 300, 400], [533, 550, 667, 850]]</box>",
                "the object in <box>[[100, 200, 300, 400]]</box> is",
                "<ref>1 ship at the left</ref><box>[[100, 200, 300, 400]]</box>",
            ),
            _sample(
                "2",
                f"describe this image {GROUNDED}",
                "There are <ref>two docks</ref><box>[[0, 0, 218, 277]]</box> at the top.",
            ),
            _sample("3", "Is there a road?", "Yes"),
        ]
    },
    faults={"train": 5},
)
