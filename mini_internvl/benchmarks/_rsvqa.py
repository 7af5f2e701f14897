"""What the two RSVQA benchmarks share: reading the official files, the prompt and the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mini_internvl.benchmarks import _vqa
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample, table_rows
from mini_internvl.benchmarks._files import image_folders, image_paths, locate, read_rows, with_val
from mini_internvl.benchmarks._tally import scorer
from mini_internvl.metrics.rsvqa import NUMBERS, rsvqa_right
from mini_internvl.records import Item, Score

PROTOCOLS = {"paper": "InternVL's script: exact words but for case; the average leaves counts and areas out."}
PRIMARY_METRIC = "accuracy"
COLUMNS = ("id", "image", "question", "gt_answer", "type")


def read_items(root: str | Path, benchmark: str, name: str, images: str, prefix: str = "") -> Iterator[Item]:
    """One item a row of an official file; an id that comes again gets a number, such as ``7#2``.

    Args:
        root: the data folder.
        benchmark: its folder below.
        name: of the annotation file.
        images: folder of the images below ``images/``.
        prefix: put before every id.

    Raises:
        DataError: a file, a field or an image is missing, or a field is of another kind.
    """
    path = locate(root, benchmark, with_val(name))
    rows = read_rows(path, (), names=COLUMNS)
    names = _vqa.unique(f"{prefix}{row['id']}" for row in rows)
    places = image_paths(path, [str(row["image"]) for row in rows], *image_folders(path, images))
    for row, item_id, image in zip(rows, names, places, strict=True):
        text = _vqa.short_question(str(row["question"]), vlmevalkit=True)
        reference = {"type": str(row["type"]), "answer": str(row["gt_answer"]), "question": str(row["question"])}
        yield _vqa.ask(item_id, [image], text, reference, max_tiles=12, max_new_tokens=50)


def right(item: Item, text: str, protocol: str = "paper") -> bool:
    """Whether an answer counts; numbers only need the gold number's range."""
    return rsvqa_right(item.reference["type"], text, item.reference["answer"])


def make_score(benchmark: str) -> Callable[..., Score]:
    """``accuracy`` (the paper's average), ``accuracy_all`` with counts and areas, and ``type/...`` for each type."""
    return scorer(benchmark, PROTOCOLS, right, metrics=_metrics, order=("accuracy", "accuracy_all"))


def _metrics(item: Item) -> list[str]:
    kind = item.reference["type"]
    return ["accuracy_all", f"type/{kind}", *([] if kind in NUMBERS else ["accuracy"])]


def example(
    folder: str, files: Mapping[str, Sequence[tuple[str, str, str]]], good: Sequence[str], bad: Sequence[str]
) -> WorkedExample:
    """Official files in small from (type, question, answer), each with one image in ``folder``; ids begin with 0."""
    return WorkedExample(
        files={
            name: table_rows("id image type question gt_answer", *((n, f"{i}.tif", *row) for n, row in enumerate(rows)))
            for i, (name, rows) in enumerate(files.items())
        },
        images={f"images/{folder}/{i}.tif": ExampleImage(width=64, height=64, seed=i) for i in range(len(files))},
        good=good,
        bad=bad,
    )
