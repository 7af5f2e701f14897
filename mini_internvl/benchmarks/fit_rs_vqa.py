"""FIT-RS-VQA: questions about objects and their relations in aerial images (FIT-RSFG's VQA task).

Scored as the authors' script does: an answer, without white space at its ends, must equal the gold one but for case.
Boxes in questions, which FIT-RS turns, are asked for as upright ones in thousandths (``_regions.py``).
Official files: ``test_FITRS_vqa_eval.jsonl`` (question_id, image, text, ground_truth, category), and for training
``train_instruction_vqa_400k.json``, a list of LLaVA's rows; both name 512x512 images of ``imgv2_split_512_100_vaild``.
Source: Luo-Z13/SkySenseGPT, ``Eval_scripts/batch_geochat_vqa.py``; ll-13/FIT-RS on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _questions, _regions
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen, locate
from mini_internvl.benchmarks._questions import Images, Question, fault, lacking, number, said
from mini_internvl.benchmarks._tally import scorer
from mini_internvl.data import Fault, Row
from mini_internvl.data.files import scan
from mini_internvl.data.formats._turns import conversation
from mini_internvl.inputs.images import image_dimensions
from mini_internvl.records import Item

TITLE = "FIT-RS-VQA"
SPLITS = ("test",)
PROTOCOLS = {"skysensegpt": "The authors' script: exact words but for case."}
PRIMARY_METRIC = "accuracy"
FILE = "test_FITRS_vqa_eval.jsonl"
TRAIN = "train_instruction_vqa_400k.json"
FOLDERS = {FILE: "FIT-RSFG/FIT-RSFG-Bench", TRAIN: "FIT-RS_Instruction/train_data_of_each_individual_task"}
IMAGES = "imgv2_split_512_100_vaild"


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a row, with the official id; DataError names what is wrong with the files."""
    chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    return _questions.items(read(root, FILE), max_new_tokens=256)


def read(root: str | Path, name: str) -> Iterator[Question | Fault]:
    """The questions of an official file, and a fault for each row or turn that cannot be used."""
    path = locate(root, "fit_rs_vqa", [name, f"{FOLDERS[name]}/{name}"])
    roots = dict.fromkeys([path.parent, *path.parents[:3], Path(root)])
    images = Images(
        *(place / below for place in roots for below in (IMAGES, f"FIT-RS_Image/{IMAGES}", f"images/FIT-RS/{IMAGES}"))
    )
    for row in scan(path):
        if isinstance(row, Fault):
            yield row
        elif (place := images.find(said(row.raw, "image"))) is None:
            yield fault(row, images.missing(said(row.raw, "image")))
        else:
            yield from _read(row, place)


def _read(row: Row, image: str) -> Iterator[Question | Fault]:
    """The questions of a row: one, or one for each two turns of a conversation."""
    name = number(row)
    try:
        if "conversations" in row.raw:
            spoken = conversation(row.raw)
            asked, answered = spoken[::2], spoken[1::2]
            if {role for role, _ in asked} != {"user"} or [role for role, _ in answered] != ["assistant"] * len(asked):
                raise ValueError("the turns are not question and answer in turn")
            pairs = [(text, answer) for (_, text), (_, answer) in zip(asked, answered, strict=True)]
        elif wrong := lacking(row.raw, "question_id", "text", "ground_truth"):
            raise ValueError(wrong)
        else:
            name, pairs = said(row.raw, "question_id"), [(said(row.raw, "text"), said(row.raw, "ground_truth"))]
        for turn, (text, answer) in enumerate(pairs):
            plain = text.replace("<image>", "").strip()
            prompt, gold = (
                _regions.tagged(one, lambda: image_dimensions(image), centred=True) for one in (plain, answer.strip())
            )
            if not prompt or not gold:
                raise ValueError("a question or answer holds no text")
            reference = {"answer": gold, "question": prompt, "category": said(row.raw, "category")}
            yield Question(
                id=f"{name}-{turn}" if turn else name, image=image, prompt=prompt, answer=gold, reference=reference
            )
    except ValueError as error:
        yield fault(row, str(error))


def right(item: Item, text: str, protocol: str = "skysensegpt") -> bool:
    """Whether the answer is the gold one but for case."""
    return text.strip().lower() == item.reference["answer"].lower()


def _metrics(item: Item) -> list[str]:
    category = item.reference["category"]
    return ["accuracy", *([f"category/{category}"] if category else [])]


score = scorer("fit_rs_vqa", PROTOCOLS, right, metrics=_metrics)


def _row(number: int, text: str, answer: str, category: str) -> dict[str, Any]:
    """A row of the official file, for the example."""
    row = {"question_id": number, "image": "0001__512__0___0.png", "text": text, "ground_truth": answer}
    return {**row, "category": category}


EXAMPLE = WorkedExample(
    files={
        FILE: [
            _row(1, "Is there a ship in the image?", "Yes", "presence"),
            _row(2, "What is at <rbox>({<50><50><20><10>|<90>})</rbox>?", "a crane", "category"),
        ]
    },
    images={f"{IMAGES}/0001__512__0___0.png": ExampleImage(width=64, height=64)},
    good=["yes", " A crane"],
    bad=["Yes, there is.", "crane"],
)
