"""What the two RSVQA benchmarks share: reading the official files, the prompt and the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._domains import annotation, image_folders
from mini_internvl.benchmarks._files import Faults, image_paths, read_rows
from mini_internvl.benchmarks._tally import scorer
from mini_internvl.metrics.rsvqa import NUMBERS, rsvqa_right
from mini_internvl.records import Item, Score

PROTOCOLS = {"paper": "InternVL's script: exact words but for case; the average leaves counts and areas out."}
PRIMARY_METRIC = "accuracy"
LOWER_IS_BETTER: frozenset[str] = frozenset()
SUFFIX = "\nAnswer the question using a single word or phrase."
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
    path = annotation(root, benchmark, name)
    rows = read_rows(path, COLUMNS)
    faults = Faults(path)
    for number, row in enumerate(rows, 1):
        for field in COLUMNS:
            if not isinstance(row[field], str | int):
                faults.add(number, f"{field} is neither text nor whole number")
    faults.check()
    seen: Counter[str] = Counter()
    places = image_paths(path, [str(row["image"]) for row in rows], *image_folders(path, images))
    for row, place in zip(rows, places, strict=True):
        text = f"{row['question']}{SUFFIX}"
        seen[str(row["id"])] += 1
        again = seen[str(row["id"])]
        yield Item(
            id=f"{prefix}{row['id']}" + (f"#{again}" if again > 1 else ""),
            messages=[
                {"role": "user", "content": [{"type": "image", "image": str(place)}, {"type": "text", "text": text}]}
            ],
            reference={"type": str(row["type"]), "answer": str(row["gt_answer"]), "question": str(row["question"])},
            max_tiles=12,
            max_new_tokens=50,
        )


def make_score(benchmark: str) -> Callable[..., Score]:
    """``accuracy`` (the paper's average), ``accuracy_all`` with counts and areas, and ``type/...`` for each type."""
    return scorer(
        benchmark,
        PROTOCOLS,
        lambda item, text, protocol: right(item, text),
        metrics=_metrics,
        order=("accuracy", "accuracy_all"),
    )


def _metrics(item: Item) -> list[str]:
    kind = item.reference["type"]
    return ["accuracy_all", f"type/{kind}", *([] if kind in NUMBERS else ["accuracy"])]


def right(item: Item, text: str) -> bool:
    """Whether an answer counts; numbers only need the gold number's range."""
    return rsvqa_right(item.reference["type"], text, item.reference["answer"])


def example_rows(image: str, *asked: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Rows of an official file from (type, question, answer), for the examples; ids begin with 0."""
    return [
        {"id": number, "image": image, "question": question, "gt_answer": answer, "type": kind}
        for number, (kind, question, answer) in enumerate(asked)
    ]
