"""What DocVQA and InfoVQA share: InternVL's question files, the RRC's annotations, ANLS, and the server's format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._files import Faults, chosen, read_rows
from mini_internvl.benchmarks._tally import Tally, answers
from mini_internvl.benchmarks._vqa import (
    NEW_TOKENS,
    VLMEVALKIT_NEW_TOKENS,
    ask,
    check_fields,
    find,
    gold_answers,
    images,
    need,
    short_question,
)
from mini_internvl.data import DataError
from mini_internvl.metrics.anls import THRESHOLD, anls, label_names
from mini_internvl.records import Item, Prediction, Score

SPLITS = ("val", "test")
UNSCORED = ("test",)
PROTOCOLS = {
    "paper": "InternVL's script: a space before the instruction, the RRC's ANLS with threshold 0.5.",
    "vlmevalkit": "VLMEvalKit: a line break before the instruction, the same ANLS.",
}
PRIMARY_METRIC = "anls"
LOWER_IS_BETTER: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a benchmark's files lie and what they hold."""

    benchmark: str
    """Name of the benchmark file."""
    folders: Sequence[str]
    """Folders below the data folder."""
    questions: Mapping[str, Sequence[str]]
    """Split -> names of InternVL's jsonl file."""
    annotations: Mapping[str, Sequence[str]]
    """Split -> names of the RRC's annotation file."""
    image: str
    """Field of the annotation file that names the image."""
    images: Sequence[str]
    """Folders of the images beside the question file or the annotation file."""
    labels: Mapping[str, Sequence[str]]
    """Group of metrics -> names of the annotation's field with the labels."""
    max_tiles: int
    """Tile limit."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    name: str | int
    """The official question id."""
    image: str
    question: str
    answers: list[str] | None
    """``None`` where they are not published."""
    labels: dict[str, list[str]]
    """Group of metrics -> labels."""


def read_items(
    layout: Layout, root: str | Path, split: str | None = None, *, protocol: str | None = None
) -> Iterator[Item]:
    """One item a question, with the official id.

    ``SPLIT.jsonl`` gives the questions; gold answers and labels come from the annotation file where it is there, as in
    the official scorer. Either file is enough.

    Raises:
        DataError: a file, a field or an image is missing or wrong, an id comes twice, or the two files disagree.
    """
    name, kind = chosen("split", split, SPLITS), chosen("protocol", protocol, PROTOCOLS)
    annotation = find(root, layout.folders, layout.annotations[name])
    annotated = _annotated(annotation, layout, scored=name not in UNSCORED) if annotation else []
    path = find(root, layout.folders, layout.questions[name]) or annotation
    if path is None:
        path = need(root, layout.benchmark, layout.folders, layout.questions[name])
    asked = annotated if path == annotation else _questions(path, annotation, annotated, scored=name not in UNSCORED)
    seen: set[str] = set()
    faults = Faults(path)
    for number, row in enumerate(asked, 1):
        if str(row.name) in seen:
            faults.add(number, f"the question id {row.name} comes twice")
        seen.add(str(row.name))
    faults.check()
    beside = [place for file in (path, annotation) if file for place in (file.parent, file.parent.parent)]
    folders = [*(place / folder for place in beside for folder in layout.images), *beside, Path(root)]
    places = images(path, [row.image for row in asked], *folders)
    for row, place in zip(asked, places, strict=True):
        yield ask(
            str(row.name),
            place,
            short_question(row.question, vlmevalkit=kind == "vlmevalkit"),
            {"question_id": row.name, "answers": row.answers, "labels": row.labels},
            max_tiles=layout.max_tiles,
            max_new_tokens=NEW_TOKENS if kind == "paper" else VLMEVALKIT_NEW_TOKENS,
        )


def _annotated(path: Path, layout: Layout, *, scored: bool) -> list[_Asked]:
    """The questions of an annotation file."""
    rows = read_rows(path, ("questionId", "question", layout.image, *(["answers"] if scored else [])), key="data")
    check_fields(path, rows, ("question", layout.image), "questionId")
    golds = gold_answers(path, rows, "answers") if scored else [None] * len(rows)
    faults = Faults(path)
    found = []
    for number, (row, gold) in enumerate(zip(rows, golds, strict=True), 1):
        labels: dict[str, list[str]] = {}
        for group, fields in layout.labels.items():
            value: Any = next((row[field] for field in fields if field in row), [])
            if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
                faults.add(number, f"{group} is no list of texts")
                continue
            labels[group] = value
        found.append(
            _Asked(
                name=row["questionId"], image=row[layout.image], question=row["question"], answers=gold, labels=labels
            )
        )
    faults.check()
    return found


def _questions(path: Path, annotation: Path | None, annotated: Sequence[_Asked], *, scored: bool) -> list[_Asked]:
    """The questions of a jsonl file, with answers and labels of the annotation file where there is one."""
    rows = read_rows(path, ("image", "question", "question_id"))
    check_fields(path, rows, ("image", "question"), "question_id")
    known = {str(row.name): row for row in annotated}
    faults = Faults(path)
    for number, row in enumerate(rows, 1):
        if annotation and str(row["question_id"]) not in known:
            faults.add(number, f"{annotation.name} has no question {row['question_id']}")
    faults.check("the two files must be of one release")
    if scored and annotation is None and any("answer" not in row for row in rows):
        raise DataError(f"{path} has no gold answers; put the RRC's annotation file beside it")
    golds = gold_answers(path, rows, "answer") if scored and annotation is None else [None] * len(rows)
    found = []
    for row, gold in zip(rows, golds, strict=True):
        more = known.get(str(row["question_id"]))
        found.append(
            _Asked(
                name=more.name if more else row["question_id"],
                image=row["image"],
                question=row["question"],
                answers=more.answers if more else gold,
                labels=more.labels if more else {},
            )
        )
    return found


def right(item: Item, text: str) -> bool:
    """Whether an answer's ANLS counts at all, that is 0.5 or more; the metrics take its value."""
    return item.reference["answers"] is not None and anls(text, item.reference["answers"]) >= THRESHOLD


def score_items(
    layout: Layout,
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Any = None,
) -> Score:
    """``anls`` and the metrics of each label, in per cent.

    Notes: ``empty`` answers, and ``no gold answer``, which count as wrong and stop the official script.

    Raises:
        ValueError: the items are of a split without published answers.
    """
    chosen("protocol", protocol, PROTOCOLS)  # they differ in the prompt only
    asked = list(items)
    if any(item.reference["answers"] is None for item in asked):
        raise ValueError(
            f"{layout.benchmark}: the answers of this split are not published; export the answers for the RRC's server"
        )
    texts = answers(asked, predictions)
    tally = Tally()
    tally.results = {PRIMARY_METRIC: []}
    for item in asked:
        labels = item.reference["labels"]
        metrics = [f"{group}/{name}" for group in labels for name in label_names(group, labels[group])]
        tally.add(anls(texts[item.id], item.reference["answers"]), PRIMARY_METRIC, *metrics)
    notes = {
        "empty": sum(not text.strip() for text in texts.values()),
        "no gold answer": sum(not item.reference["answers"] for item in asked),
    }
    return tally.score(layout.benchmark, items=len(asked), notes=notes)


def export_answers(
    layout: Layout, items: Iterable[Item], predictions: Iterable[Prediction], folder: str | Path
) -> list[Path]:
    """``BENCHMARK_test.json`` for the RRC's server: a list of ``{"questionId", "answer"}``, one for each item.

    The server refuses a file that lacks questions, so an item without a prediction gets an empty answer.
    """
    asked = list(items)
    texts = answers(asked, predictions)
    rows = [{"questionId": item.reference["question_id"], "answer": texts[item.id]} for item in asked]
    path = Path(folder) / f"{layout.benchmark}_test.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return [path]
