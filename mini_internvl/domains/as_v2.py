"""AS-V2 of the All-Seeing Project: conversations whose objects and relations have boxes.

The raw folder holds ``rec_conversation_22k.json``, ``rec_detailed_description_42k.json`` and
``rec_region_captioning_63k.json``, or their ``..._wo_square_pad.json``, which are preferred (OpenGVLab/AS-V2 on the
Hugging Face hub); and COCO's images where the rows name them, below ``data`` or directly. Files that are not there are
passed over. Phrases stand in ``<ref>``, relations in ``<pred>``, boxes in ``<box>[[x1, y1, x2, y2], ...]</box>``, from
0 to 999.
Boxes become thousandths of the image. Unusual: those of the files without ``wo_square_pad`` are of a square around the
image. ``<pred>`` stays as it is, a plain text for the tokenizer; what InternVL does with it is not known.
There is no test set of this form in the paper: MMBench, which it prints, measures what is learnt.
Source: ``README.md`` of the data set; ``all-seeing-v2/scripts_asmv2/visualize_rec.py`` of OpenGVLab/all-seeing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from mini_internvl.benchmarks import mmbench_en
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._questions import Images, number
from mini_internvl.data import DataError, Fault
from mini_internvl.data.files import scan
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._conversations import Said, conversation, example_row, expected, of_square
from mini_internvl.inputs import boxes
from mini_internvl.inputs.images import image_dimensions
from mini_internvl.records import Sample

SOURCE = "as-v2"
TITLE = "Objects and relations in photographs (AS-V2)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = {"mmbench_en": DomainBenchmark(test="dev")}
FILES = {
    "conversation": "rec_conversation_22k",
    "description": "rec_detailed_description_42k",
    "region": "rec_region_captioning_63k",
}
"""Beginning of the samples' ids -> name of the file, without its ending."""
UNPADDED = "_wo_square_pad"
LARGEST = 999  # the number of an image's right or lower edge


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a conversation; a fault for a row without its image, with an empty turn, or with what is no box."""
    chosen("split", split, SPLITS)
    places = [
        (name, path)
        for name, stem in FILES.items()
        if (path := next((p for end in (UNPADDED, "") if (p := Path(raw) / f"{stem}{end}.json").is_file()), None))
    ]
    if not places:
        stems = ", ".join(f"{stem}{UNPADDED}.json" for stem in FILES.values())
        raise DataError(f"{raw} holds none of {stems}; get them from OpenGVLab/AS-V2 on the Hugging Face hub")
    images = Images(Path(raw) / "data", Path(raw))
    for name, path in places:
        rewrite = functools.partial(_rewrite, padded=UNPADDED not in path.stem)
        for row in scan(path):
            if isinstance(row, Fault):
                yield row
            else:
                yield conversation(row, images, source=SOURCE, name=f"{name}/{number(row)}", rewrite=rewrite)


def _rewrite(said: Said, place: str, *, padded: bool) -> list[str]:
    """The texts of a conversation with boxes in thousandths; ValueError where one is no box of the image."""

    def several(match: re.Match[str]) -> str:
        found = boxes.rows(match[1])
        if found is None:
            raise ValueError(f"{match[0]} holds no boxes; they are lists of four numbers")
        if any(not 0 <= edge <= LARGEST for box in found for edge in box):
            raise ValueError(f"{match[0]} leaves the image; its numbers are 0 to {LARGEST}")
        if not padded:
            return boxes.render_boxes([boxes.to_thousand(box, LARGEST, LARGEST) for box in found])
        size = image_dimensions(place)
        return boxes.render_boxes([of_square([edge / LARGEST for edge in box], *size) for box in found])

    texts = [re.sub(r"<box>([^<]*)</box>", several, text) for _, text in said]
    if any(text.count("<box>") != text.count("</box>") for text in texts):
        raise ValueError("a <box> is not closed")
    return texts


_COCO = "coco/train2017/000000000025.jpg"
_RELATION = "A <ref>bus</ref><box>{0}</box> is <pred>driving on</pred><box>{0}</box><box>{1}</box> a <ref>road</ref>"
EXAMPLE = DomainExample(
    files={
        f"{FILES['conversation']}{UNPADDED}.json": [
            example_row(
                _COCO,
                "<image>\nWhat is the bus doing?",
                _RELATION.format("[[290, 202, 835, 851]]", "[[0, 604, 984, 999]]"),
            ),
            example_row(_COCO, "<image>\nIs the box whole?", "<ref>bus</ref><box>[[290, 202, 835]]</box>"),
            example_row(_COCO, "<image>\nIs the box closed?", "<ref>bus</ref><box>[[290, 202, 835, 900]]"),
            example_row(_COCO, "<image>\nIs there an answer?", " "),
            example_row("coco/train2017/9.jpg", "<image>\nIs the image there?", "No."),
        ],
        f"{FILES['conversation']}.json": [],
        f"{FILES['region']}.json": [
            example_row(
                _COCO,
                "<image>\nWhat is at <box>[[0, 250, 999, 833]]</box>?",
                "<ref>A car</ref><box>[[0, 166, 499, 833]]</box>",
            ),
            example_row(_COCO, "<image>\nSwapped?", "<ref>A car</ref><box>[[499, 166, 0, 833]]</box>"),
            example_row(_COCO, "<image>\nOutside?", "<ref>A car</ref><box>[[0, 20, 499, 80]]</box>"),
            example_row(_COCO, "<image>\nPixels?", "<ref>A car</ref><box>[[0, 20, 1499, 80]]</box>"),
        ],
        **mmbench_en.EXAMPLE.files,
    },
    images={f"data/{_COCO}": ExampleImage(width=120, height=80), **mmbench_en.EXAMPLE.images},
    samples={
        "train": [
            expected(
                SOURCE,
                "conversation/1",
                f"data/{_COCO}",
                "What is the bus doing?",
                _RELATION.format("[[290, 202, 836, 852]]", "[[0, 605, 985, 1000]]"),
            ),
            expected(
                SOURCE,
                "region/1",
                f"data/{_COCO}",
                "What is at <box>[[0, 125, 1000, 1000]]</box>?",
                "<ref>A car</ref><box>[[0, 0, 499, 1000]]</box>",
            ),
        ]
    },
    faults={"train": 7},
)
