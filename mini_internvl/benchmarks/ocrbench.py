"""OCRBench: 1000 items of reading text, a point each; the number that papers print is the sum of points.

Reads the official ``OCRBench.json`` with its images, or VLMEvalKit's table ``OCRBench.tsv``. Unusual: the metrics
are points, not per cents, so on a part of the items they are small; ``share`` is the primary metric in per cent of the
items asked, equal to VLMEvalKit's "Final Score Norm" on all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _vqa
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample, table_rows
from mini_internvl.benchmarks._files import chosen, locate, read_tsv
from mini_internvl.benchmarks._tally import Asked, Judge, Tally, empty_answers, with_answers
from mini_internvl.metrics.list_text import read_list
from mini_internvl.metrics.ocrbench import CATEGORIES, FORMULA_SET, FORMULAS, RECOGNITION, TOTAL, contains_gold
from mini_internvl.records import Item, Score

TITLE = "OCRBench"
SPLITS = ("test",)
PROTOCOLS = {
    "paper": "VLMEvalKit: formulas are the items of the category for handwritten formulas.",
    "official": "MultimodalOCR's script: formulas are the items of the data set HME100k.",
}
PRIMARY_METRIC = "score"
PRIMARY_METRIC_MAX = float(TOTAL)
FOLDERS = ("OCRBench", "data/ocrbench")
TABLE = "OCRBench.tsv"
OFFICIAL = ("OCRBench.json", "OCRBench/OCRBench.json")
MAX_TILES = 24


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a row, with the official id or index; DataError says what is wrong with the files.

    Where both files are there, the paper's protocol reads the table and the other the official file.
    """
    chosen("split", split, SPLITS)
    kind = chosen("protocol", protocol, PROTOCOLS)
    path = locate(root, "ocrbench", (TABLE, *OFFICIAL) if kind == "paper" else (*OFFICIAL, TABLE), FOLDERS)
    rows = list(_table(path) if path.suffix == ".tsv" else _official(path, Path(root)))
    names = _vqa.unique(name for name, *_ in rows)
    for name, (_, image, question, reference) in zip(names, rows, strict=True):
        text = _vqa.short_question(question, vlmevalkit=True)
        yield _vqa.ask(name, [image], text, reference, max_tiles=MAX_TILES, max_new_tokens=_vqa.VLMEVALKIT_NEW_TOKENS)


_Row = tuple[str, Any, str, dict[str, Any]]  # id, image, question, reference


def _table(path: Path) -> Iterator[_Row]:
    def check(row: dict[str, Any]) -> Iterable[str]:
        if not all(isinstance(gold, str) for gold in read_list(row["answer"]) or ()):
            yield "answer holds something that is no text"

    for row in read_tsv(path, ("index", "image", "question", "answer", "category"), check=check):
        listed = read_list(row["answer"])
        golds = [row["answer"]] if listed is None else listed
        reference = {"category": row["category"], "data_set": "", "answers": golds}
        yield row["index"], row["image"][0], row["question"], reference


def _official(path: Path, root: Path) -> Iterator[_Row]:
    texts = ("dataset_name", "type")
    rows = _vqa.read_questions(path, name="id", image="image_path", answers="answers", texts=texts)
    folders = [path.parent / "OCRBench_Images", path.parent.parent / "OCRBench_Images", path.parent.parent, root]
    images = _vqa.question_images(path, [row["image_path"] for row in rows], *folders)
    for row, image in zip(rows, images, strict=True):
        golds = _vqa.gold_list(row["answers"])
        yield (
            row["id"],
            image,
            row["question"],
            {"category": row["type"], "data_set": row["dataset_name"], "answers": golds},
        )


def right(item: Item, text: str, protocol: str = "paper") -> bool:
    """Whether an answer gets the point in a protocol."""
    reference = item.reference
    by_set = protocol == "official" and reference["data_set"]
    formula = reference["data_set"] == FORMULA_SET if by_set else reference["category"] == FORMULAS
    return contains_gold(text, reference["answers"], formula=formula)


@with_answers(PROTOCOLS)
def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
    """Points: ``score``, ``Text Recognition`` with its six kinds, and the other categories; ``share`` in per cent.

    No judge is needed. Notes: ``empty`` answers, and ``of`` where fewer than the 1000 items were asked.
    """
    present = {item.reference["category"] for item, _ in asked}
    in_order = sorted(present, key=lambda name: CATEGORIES.index(name) if name in CATEGORIES else TOTAL)
    tally = Tally(*(metric for category in in_order for metric in _metrics(category)))
    for item, text in asked:
        tally.add(right(item, text, protocol), PRIMARY_METRIC, *_metrics(item.reference["category"]))
    notes: dict[str, Any] = dict(empty_answers(asked))
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


def _metrics(category: str) -> list[str]:
    return ["Text Recognition", f"Text Recognition/{category}"] if category in RECOGNITION else [category]


_ASKED = (
    ("IIIT5K", "what is written in the image?", ["BREWER"], RECOGNITION[0]),
    ("ctw", "what is written in the image?", ["Open 24h"], RECOGNITION[1]),
    ("WordArt", "what is written in the image?", ["Fête"], RECOGNITION[2]),
    ("IAM", "what is written in the image?", ["don’t"], RECOGNITION[3]),
    ("ORAND", "what is the number in the image?", ["00731"], RECOGNITION[4]),
    ("NonSemanticText", "what is written in the image?", ["xqzv"], RECOGNITION[5]),
    ("ESTVQA_cn", "图中写着什么？", ["东门", "东 门"], "Scene Text-centric VQA"),
    ("docVQA", "what is the total?", ["$1,200", "1200"], "Doc-oriented VQA"),
    ("SROIE", "what is the date of this receipt?", ["12/03/2019"], "Key Information Extraction"),
    ("HME100k", "Please write out the expression.", ["x ^ { 2 } + 1"], FORMULAS),
)
"""Data set, question, gold answers, category."""
_IMAGES = [ExampleImage(width=60, height=30, seed=number) for number in range(len(_ASKED))]

EXAMPLE = WorkedExample(
    files={
        TABLE: table_rows(
            "index image question answer category",
            *((n, _IMAGES[n], question, repr(golds), kind) for n, (_, question, golds, kind) in enumerate(_ASKED)),
        ),
        OFFICIAL[0]: table_rows(
            "dataset_name id image_path question answers type",
            *(
                (data_set, n, f"{data_set}/{n}.png", question, golds if len(golds) > 1 else golds[0], kind)
                for n, (data_set, question, golds, kind) in enumerate(_ASKED)
            ),
        ),
    },
    images={f"OCRBench_Images/{_ASKED[n][0]}/{n}.png": image for n, image in enumerate(_IMAGES)},
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
