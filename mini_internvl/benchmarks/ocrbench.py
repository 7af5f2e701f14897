"""OCRBench: 1000 items of reading text, a point each; the number that papers print is the sum of points.

Reads the official ``OCRBench.json`` with its images, or VLMEvalKit's table ``OCRBench.tsv``. Unusual: the metrics
are points, not per cents, so on a part of the items they are small; ``share`` is the primary metric in per cent of the
items asked, equal to VLMEvalKit's "Final Score Norm" on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._example import Example, ExampleImage
from mini_internvl.benchmarks._files import Faults, TableImage, chosen, read_rows, read_tsv, tsv_images
from mini_internvl.benchmarks._tally import Tally, answers
from mini_internvl.benchmarks._vqa import (
    VLMEVALKIT_NEW_TOKENS,
    ask,
    check_fields,
    gold_answers,
    images,
    need,
    short_question,
    unique,
)
from mini_internvl.metrics.list_text import read_list
from mini_internvl.metrics.ocrbench import (
    CATEGORIES,
    FORMULA_SET,
    FORMULAS,
    RECOGNITION,
    TOTAL,
    contains_gold,
)
from mini_internvl.records import Item, Prediction, Score

TITLE = "OCRBench"
SPLITS = ("test",)
PROTOCOLS = {
    "paper": "VLMEvalKit: formulas are the items of the category for handwritten formulas.",
    "official": "MultimodalOCR's script: formulas are the items of the data set HME100k.",
}
PRIMARY_METRIC = "score"
PRIMARY_METRIC_MAX = float(TOTAL)
LOWER_IS_BETTER: frozenset[str] = frozenset()
FOLDERS = ("ocrbench", "OCRBench", "data/ocrbench")
TABLE = "OCRBench.tsv"
OFFICIAL = ("OCRBench.json", "OCRBench/OCRBench.json")
MAX_TILES = 24


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a row, with the official id or index; DataError says what is wrong with the files.

    Where both files are there, the paper's protocol reads the table and the other the official file.
    """
    chosen("split", split, SPLITS)
    kind = chosen("protocol", protocol, PROTOCOLS)
    path = need(root, "ocrbench", FOLDERS, (TABLE, *OFFICIAL) if kind == "paper" else (*OFFICIAL, TABLE))
    for name, image, question, reference in _table(path) if path.suffix == ".tsv" else _official(path, Path(root)):
        text = short_question(question, vlmevalkit=True)
        yield ask(name, image, text, reference, max_tiles=MAX_TILES, max_new_tokens=VLMEVALKIT_NEW_TOKENS)


_Row = tuple[str, str | TableImage, str, dict[str, Any]]
"""Id, image, question, reference."""


def _table(path: Path) -> Iterator[_Row]:
    rows = read_tsv(path, ("index", "image", "question", "answer", "category"))
    shown = tsv_images(path, rows)
    faults = Faults(path)
    golds = []
    for number, row in enumerate(rows, 1):
        listed = read_list(row["answer"])
        if listed is not None and not all(isinstance(gold, str) for gold in listed):
            faults.add(number, "answer holds something that is no text")
        golds.append([row["answer"]] if listed is None else listed)
    faults.check()
    names = unique(row["index"] for row in rows)
    for row, name, image, gold in zip(rows, names, shown, golds, strict=True):
        yield name, image[0], row["question"], {"category": row["category"], "data_set": "", "answers": gold}


def _official(path: Path, root: Path) -> Iterator[_Row]:
    fields = ("dataset_name", "image_path", "question", "type")
    rows = read_rows(path, (*fields, "id", "answers"))
    check_fields(path, rows, fields, "id")
    golds = gold_answers(path, rows, "answers")
    folders = [path.parent / "OCRBench_Images", path.parent.parent / "OCRBench_Images", path.parent.parent, root]
    shown = images(path, [row["image_path"] for row in rows], *folders)
    names = unique(row["id"] for row in rows)
    for row, name, image, gold in zip(rows, names, shown, golds, strict=True):
        reference = {"category": row["type"], "data_set": row["dataset_name"], "answers": gold}
        yield name, image, row["question"], reference


def _right(reference: Mapping[str, Any], text: str, protocol: str) -> bool:
    by_set = protocol == "official" and reference["data_set"]
    formula = reference["data_set"] == FORMULA_SET if by_set else reference["category"] == FORMULAS
    return contains_gold(text, reference["answers"], formula=formula)


def right(item: Item, text: str) -> bool:
    """Whether an answer gets the point in the paper's protocol."""
    return _right(item.reference, text, "paper")


def score(
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Callable[..., str] | None = None,
) -> Score:
    """Points: ``score``, ``Text Recognition`` with its six kinds, and the other categories; ``share`` in per cent.

    No judge is needed. Notes: ``empty`` answers, and ``of`` where fewer than the 1000 items were asked.
    """
    kind = chosen("protocol", protocol, PROTOCOLS)
    asked = list(items)
    texts = answers(asked, predictions)
    tally = Tally()
    present = {item.reference["category"] for item in asked}
    for category in sorted(present, key=lambda name: CATEGORIES.index(name) if name in CATEGORIES else TOTAL):
        tally.results |= {metric: [] for metric in _tally(category)}
    for item in asked:
        tally.add(_right(item.reference, texts[item.id], kind), PRIMARY_METRIC, *_tally(item.reference["category"]))
    notes: dict[str, Any] = {"empty": sum(not text.strip() for text in texts.values())}
    if len(asked) != TOTAL:
        notes["of"] = f"{len(asked)} items asked, {TOTAL} are the benchmark"
    found = tally.score("ocrbench", items=len(asked), scale=1.0, notes=notes)
    values = {PRIMARY_METRIC: 0.0, **{metric: share * found.counts[metric] for metric, share in found.values.items()}}
    errors = {metric: share * found.counts[metric] for metric, share in found.errors.items()}
    return replace(
        found,
        values={**values, "share": tally.value(PRIMARY_METRIC)},
        errors={**errors, "share": tally.error(PRIMARY_METRIC)},
    )


def _tally(category: str) -> list[str]:
    if category in RECOGNITION:
        return ["Text Recognition", f"Text Recognition/{category}"]
    return [category]


_ASKED = (
    ("IIIT5K", "what is written in the image?", ["BREWER"], "Regular Text Recognition"),
    ("ctw", "what is written in the image?", ["Open 24h"], "Irregular Text Recognition"),
    ("WordArt", "what is written in the image?", ["Fête"], "Artistic Text Recognition"),
    ("IAM", "what is written in the image?", ["don’t"], "Handwriting Recognition"),
    ("ORAND", "what is the number in the image?", ["00731"], "Digit String Recognition"),
    ("NonSemanticText", "what is written in the image?", ["xqzv"], "Non-Semantic Text Recognition"),
    ("ESTVQA_cn", "图中写着什么？", ["东门", "东 门"], "Scene Text-centric VQA"),
    ("docVQA", "what is the total?", ["$1,200", "1200"], "Doc-oriented VQA"),
    ("SROIE", "what is the date of this receipt?", ["12/03/2019"], "Key Information Extraction"),
    ("HME100k", "Please write out the expression.", ["x ^ { 2 } + 1"], FORMULAS),
)

EXAMPLE = Example(
    files={
        TABLE: [
            {
                "index": number,
                "image": ExampleImage(width=60, height=30, seed=number),
                "question": question,
                "answer": repr(golds),
                "category": category,
            }
            for number, (_, question, golds, category) in enumerate(_ASKED)
        ],
        OFFICIAL[0]: [
            {
                "dataset_name": data_set,
                "id": number,
                "image_path": f"{data_set}/{number}.png",
                "question": question,
                "answers": golds if len(golds) > 1 else golds[0],
                "type": category,
            }
            for number, (data_set, question, golds, category) in enumerate(_ASKED)
        ],
    },
    images={
        f"OCRBench_Images/{data_set}/{number}.png": ExampleImage(width=60, height=30, seed=number)
        for number, (data_set, *_) in enumerate(_ASKED)
    },
    good=[
        "Brewery",
        "open\n24h",
        "fête!",
        "don’t",
        "no. 00731",
        "XQZV",
        "东门小吃",
        "$1,200.00",
        "12/03/2019",
        "x^{2}+1",
    ],
    bad=["", "OPEN 24 H", "fete", "don't", "731", "x q z v", "東門", "$1,2", "12-03-2019", "X^{2}+1"],
)
