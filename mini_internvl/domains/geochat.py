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

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import _regions
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._questions import Images, needed
from mini_internvl.data import Fault
from mini_internvl.data.files import scan
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._conversations import Said, conversation, example_row, expected
from mini_internvl.inputs.images import image_dimensions
from mini_internvl.records import Sample

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
        yield row if isinstance(row, Fault) else conversation(row, images, source=SOURCE, rewrite=_rewrite)


def _rewrite(said_now: Said, place: str) -> list[str]:
    """The texts of a conversation with its tags and boxes in this family's form."""
    found: list[str] = []
    task = phrase = box = ""
    for role, text in said_now:
        if role == "user":
            tag = _TAG.search(text)
            task, phrase = tag[1] if tag else "", _regions.phrase_of(text)
            new = _regions.tagged(_TAG.sub("", text).strip(), lambda: image_dimensions(place))
            box = "".join(re.findall(r"<box>.*?</box>", new)[:1])
            new = f"{new} {GROUNDED}" if task == "grounding" else new
        else:
            named = phrase if task == "refer" else ""
            new = _regions.tagged(text.strip(), lambda: image_dimensions(place), phrase=named)
            if task == "identify" and box and "<box>" not in new:
                new = re.sub("</ref>", f"</ref>{box}", new, count=1)
        found.append(new)
    return found


_row, _sample = example_row, functools.partial(expected, SOURCE)
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
                "final_images_llava/a.jpg",
                "where is <ref>a ship</ref> ?",
                "<ref>a ship</ref><box>[[100, 200, 300, 400], [533, 550, 667, 850]]</box>",
                "the object in <box>[[100, 200, 300, 400]]</box> is",
                "<ref>1 ship at the left</ref><box>[[100, 200, 300, 400]]</box>",
            ),
            _sample(
                "2",
                "final_images_llava/a.jpg",
                f"describe this image {GROUNDED}",
                "There are <ref>two docks</ref><box>[[0, 0, 218, 277]]</box> at the top.",
            ),
            _sample("3", "final_images_llava/a.jpg", "Is there a road?", "Yes"),
        ]
    },
    faults={"train": 5},
)
