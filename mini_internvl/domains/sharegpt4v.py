"""ShareGPT4V: long captions, and LLaVA-1.5's instructions with part of their captions replaced by such.

The raw folder holds one or both of ``sharegpt4v_instruct_gpt4-vision_cap100k.json`` and
``sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json`` (Lin-Chen/ShareGPT4V on the Hugging Face hub), or
InternVL's ``.jsonl`` of these names, and the images below ``data`` or directly, in the folders that the rows name:
``coco/train2017``, ``sam/images``, ``llava/llava_pretrain/images``, ``gqa/images``, ``vg/VG_100K`` and so on.
Rows without an image are text alone. Boxes become this family's, as in InternVL's training from version 1.2-Plus on: a
region is asked for as ``... describes: <ref>PHRASE</ref>`` and answered with phrase and box in thousandths.
Likely, but not told by the authors: LLaVA's boxes are shares of a square around the image (issue 606 of
haotian-liu/LLaVA); reports on its RefCOCO part disagree (issue 623). A box that would lie outside of its image by that
reading is a fault, so a file of another convention stops the run.
There is no test set of this form: MMBench, which the paper prints, measures what is learnt.
Source: ``docs/Data.md`` of InternLM-XComposer's ShareGPT4V; InternVL's page on reproducing version 1.2.
"""

from __future__ import annotations

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

SOURCE = "sharegpt4v"
TITLE = "Photographs and instructions (ShareGPT4V)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = {"mmbench_en": DomainBenchmark(test="dev")}
FILES = {
    "cap100k": "sharegpt4v_instruct_gpt4-vision_cap100k",
    "mix665k": "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k",
}
"""Beginning of the samples' ids -> name of the file, without its ending."""
_SHARE = r"\s*([01](?:\.\d+)?)\s*"
_BOX = re.compile(r"\[" + ",".join([_SHARE] * 4) + r"\]")
_ASKED = re.compile(r"(bounding box coordinate of the region this sentence describes:\s*)(.+?)(\.?)\s*$")
_PHRASE = re.compile(r"(\s*)([^\n]+?)(\.?)\s*$")


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a conversation; a fault for a row without its image, with an empty turn, or a box outside of it."""
    chosen("split", split, SPLITS)
    places = [
        (name, path)
        for name, stem in FILES.items()
        if (path := next((p for end in ("json", "jsonl") if (p := Path(raw) / f"{stem}.{end}").is_file()), None))
    ]
    if not places:
        raise DataError(
            f"{raw} holds neither {' nor '.join(f'{stem}.json' for stem in FILES.values())}; get one from "
            "Lin-Chen/ShareGPT4V on the Hugging Face hub"
        )
    images = Images(Path(raw) / "data", Path(raw))
    for name, path in places:
        for row in scan(path):
            if isinstance(row, Fault):
                yield row
            else:
                named = f"{name}/{number(row)}"
                yield conversation(row, images, source=SOURCE, name=named, rewrite=_rewrite, bare=True)


def _rewrite(said: Said, place: str) -> list[str]:
    """The texts of a conversation with boxes in this family's form; text alone stays as it is."""
    texts = [text for _, text in said]
    if not place or not any(map(_BOX.search, texts)):
        return texts
    found: list[str] = []
    asked = False  # whether a turn before asked for a region: LLaVA's later ones hold the phrase alone
    for role, text in said:
        if role == "user" or not found:
            asked = asked or bool(_ASKED.search(text))
        elif asked and _BOX.fullmatch(text.strip()) and "<box>" not in found[-1]:
            match = _ASKED.search(found[-1]) or _PHRASE.search(found[-1])
            if match:
                found[-1] = f"{found[-1][: match.start()]}{match[1]}<ref>{match[2]}</ref>{match[3]}"
                text = f"<ref>{match[2]}</ref>{_tagged(text, place)}"
        found.append(_tagged(text, place))
    return found


def _tagged(text: str, place: str) -> str:
    """The text with its boxes in thousandths of the image; ValueError where one is no box of it."""

    def box(match: re.Match[str]) -> str:
        if not any("." in share for share in match.groups()):
            return match[0]  # a list of whole numbers
        shares = [float(share) for share in match.groups()]
        return boxes.render_boxes([of_square(shares, *image_dimensions(place))])

    return _BOX.sub(box, text)


_COCO, _VG = "coco/train2017/000000000009.jpg", "vg/VG_100K/1.jpg"
_REGION = "Please provide the bounding box coordinate of the region this sentence describes: "
EXAMPLE = DomainExample(
    files={
        f"{FILES['cap100k']}.json": [
            example_row(
                _COCO, "What do you see happening in this image?\n<image>", "In the centre, a red disc [1, 0, 0, 1]."
            ),
            example_row("sam/images/sa_1.jpg", "<image>\nIs the image there?", "No."),
            example_row(_COCO, "<image>\nIs there an answer?", ""),
        ],
        f"{FILES['mix665k']}.json": [
            example_row(_COCO, f"<image>\n{_REGION}the red disc.", "[0.25, 0.25, 0.5, 0.75]"),
            example_row(
                _VG, f"<image>\n{_REGION}a tall tree.", "[0.25, 0.1, 0.5, 1.0]", "a road", "[0.5, 0.5, 0.6, 0.6]",
                "Please provide a short description for this region: [0.25, 0.0, 0.75, 0.5].", "The sky above.",
            ),
            {"conversations": example_row("", "Sum [0.5, 0.5, 0, 1].", "2")["conversations"]},
            example_row(_COCO, f"<image>\n{_REGION}a swapped box.", "[0.5, 0.25, 0.25, 0.75]"),
            example_row(_COCO, f"<image>\n{_REGION}a box outside.", "[0.25, 0.05, 0.5, 0.1]"),
            {"id": "u", "image": [_COCO, _VG], "conversations": [{"from": "human", "value": "Two?"}]},
        ],
        **mmbench_en.EXAMPLE.files,
    },
    images={
        f"data/{_COCO}": ExampleImage(width=120, height=80),
        f"data/{_VG}": ExampleImage(width=60, height=120, seed=1),
        **mmbench_en.EXAMPLE.images,
    },
    samples={
        "train": [
            expected(
                SOURCE, "cap100k/1", f"data/{_COCO}", "What do you see happening in this image?\n<image>",
                "In the centre, a red disc [1, 0, 0, 1].",
            ),
            expected(
                SOURCE, "mix665k/1", f"data/{_COCO}", f"{_REGION}<ref>the red disc</ref>.",
                "<ref>the red disc</ref><box>[[250, 125, 500, 875]]</box>",
            ),
            expected(
                SOURCE, "mix665k/2", f"data/{_VG}", f"{_REGION}<ref>a tall tree</ref>.",
                "<ref>a tall tree</ref><box>[[0, 100, 500, 1000]]</box>", "<ref>a road</ref>",
                "<ref>a road</ref><box>[[500, 500, 700, 600]]</box>",
                "Please provide a short description for this region: <box>[[0, 0, 1000, 500]]</box>.",
                "The sky above.",
            ),
            expected(SOURCE, "mix665k/3", "", "Sum [0.5, 0.5, 0, 1].", "2"),
        ]
    },
    faults={"train": 5},
)  # fmt: skip
