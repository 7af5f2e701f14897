"""What DocVQA and InfoVQA share: InternVL's question files, the RRC's annotations, ANLS, and the server's format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _vqa
from mini_internvl.benchmarks._files import Faults, chosen, find, locate
from mini_internvl.benchmarks._tally import Asked, Judge, Tally, answers, empty_answers, with_answers
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


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a benchmark's files lie and what they hold."""

    benchmark: str  # name of the benchmark file
    folders: Sequence[str]  # folders below the data folder, beside the one with the benchmark's name
    questions: Mapping[str, Sequence[str]]  # split -> names of InternVL's jsonl file
    annotations: Mapping[str, Sequence[str]]  # split -> names of the RRC's annotation file
    image: str  # field of the annotation file that names the image
    images: Sequence[str]  # folders of the images beside the question file or the annotation file
    labels: Mapping[str, Sequence[str]]  # group of metrics -> names of the annotation's field with the labels
    max_tiles: int


def read_items(
    layout: Layout, root: str | Path, split: str | None = None, *, protocol: str | None = None
) -> Iterator[Item]:
    """One item a question, with the official id.

    ``SPLIT.jsonl`` gives the questions; gold answers and labels come from the annotation file where it is there, as in
    the official scorer. Either file is enough. DataError: something is missing or wrong, an id comes twice, or the two
    files disagree.
    """
    name, kind = chosen("split", split, SPLITS), chosen("protocol", protocol, PROTOCOLS)
    scored, place = name not in UNSCORED, (root, layout.benchmark)
    annotation = find(*place, layout.annotations[name], layout.folders)
    path = find(*place, layout.questions[name], layout.folders) or annotation
    path = path or locate(*place, layout.questions[name], layout.folders)
    annotated = _annotated(annotation, layout, scored=scored) if annotation else []
    rows = annotated if path == annotation else _questions(path, annotation, annotated, scored=scored)
    seen: set[str] = set()
    faults = Faults(path)
    for number, (_, _, reference) in enumerate(rows, 1):
        if str(reference["question_id"]) in seen:
            faults.add(number, f"the question id {reference['question_id']} comes twice")
        seen.add(str(reference["question_id"]))
    faults.check()
    beside = [place for file in (path, annotation) if file for place in (file.parent, file.parent.parent)]
    folders = [*(place / folder for place in beside for folder in layout.images), *beside, Path(root)]
    images = _vqa.question_images(path, [image for image, *_ in rows], *folders)
    vlmevalkit = kind == "vlmevalkit"
    for (_, question, reference), image in zip(rows, images, strict=True):
        yield _vqa.ask(
            str(reference["question_id"]),
            [image],
            _vqa.short_question(question, vlmevalkit=vlmevalkit),
            reference,
            max_tiles=layout.max_tiles,
            max_new_tokens=_vqa.VLMEVALKIT_NEW_TOKENS if vlmevalkit else _vqa.NEW_TOKENS,
        )


_Row = tuple[str, str, dict[str, Any]]
"""Image, question, reference: ``question_id``, ``answers`` (``None`` where not published), ``labels`` by group."""


def _annotated(path: Path, layout: Layout, *, scored: bool) -> list[_Row]:
    """The questions of an annotation file."""
    golds = "answers" if scored else None
    rows = _vqa.read_questions(path, name="questionId", image=layout.image, answers=golds, key="data")
    faults = Faults(path)
    found = []
    for number, row in enumerate(rows, 1):
        labels: dict[str, Any] = {
            group: next((row[field] for field in fields if field in row), []) for group, fields in layout.labels.items()
        }
        wrong = [group for group, value in labels.items() if not _vqa.are_texts(value)]
        faults.add(number, *(f"{group} is no list of texts" for group in wrong))
        reference = {"question_id": row["questionId"], "answers": _vqa.gold_list(row["answers"]) if scored else None}
        found.append((row[layout.image], row["question"], {**reference, "labels": labels}))
    faults.check()
    return found


def _questions(path: Path, annotation: Path | None, annotated: Sequence[_Row], *, scored: bool) -> list[_Row]:
    """The questions of a jsonl file, with answers and labels of the annotation file where there is one."""
    rows = _vqa.read_questions(path, answers=None)
    if annotation:
        known = {str(reference["question_id"]): reference for _, _, reference in annotated}
        faults = Faults(path)
        for number, row in enumerate(rows, 1):
            if str(row["question_id"]) not in known:
                faults.add(number, f"{annotation.name} has no question {row['question_id']}")
        faults.check("the two files must be of one release")
        return [(row["image"], row["question"], known[str(row["question_id"])]) for row in rows]
    if scored:
        if any("answer" not in row for row in rows):
            raise DataError(f"{path} has no gold answers; put the RRC's annotation file beside it")
        rows = _vqa.read_questions(path)
    golds = [_vqa.gold_list(row["answer"]) if scored else None for row in rows]
    return [
        (row["image"], row["question"], {"question_id": row["question_id"], "answers": gold, "labels": {}})
        for row, gold in zip(rows, golds, strict=True)
    ]


def right(item: Item, text: str) -> bool:
    """Whether an answer's ANLS counts at all, that is 0.5 or more; the metrics take its value."""
    return item.reference["answers"] is not None and anls(text, item.reference["answers"]) >= THRESHOLD


def make_score(benchmark: str) -> Callable[..., Score]:
    """The ``score`` of a benchmark: ``anls`` and the metrics of each label, in per cent."""

    @with_answers(PROTOCOLS)  # they differ in the prompt only
    def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
        """``anls`` and the metrics of each label, in per cent.

        Notes: ``empty`` answers, and ``no gold answer``, which count as wrong and stop the official script. ValueError:
        the items are of a split without published answers.
        """
        if any(item.reference["answers"] is None for item, _ in asked):
            raise ValueError(
                f"{benchmark}: the answers of this split are not published; export the answers for the RRC's server"
            )
        tally = Tally(PRIMARY_METRIC)
        for item, text in asked:
            labels = item.reference["labels"]
            metrics = [f"{group}/{name}" for group in labels for name in label_names(group, labels[group])]
            tally.add(anls(text, item.reference["answers"]), PRIMARY_METRIC, *metrics)
        unanswered = sum(not item.reference["answers"] for item, _ in asked)
        return tally.score(benchmark, items=len(asked), notes={**empty_answers(asked), "no gold answer": unanswered})

    return score


def export_answers(
    benchmark: str, items: Iterable[Item], predictions: Iterable[Prediction], folder: str | Path
) -> list[Path]:
    """``BENCHMARK_test.json`` for the RRC's server: a list of ``{"questionId", "answer"}``, one for each item.

    The server refuses a file that lacks questions, so an item without a prediction gets an empty answer.
    """
    rows = [{"questionId": item.reference["question_id"], "answer": text} for item, text in answers(items, predictions)]
    path = Path(folder) / f"{benchmark}_test.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return [path]


def example_files(
    layout: Layout, split: str, questions: str, annotation: str, prefix: str, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The two files of a split, for the examples, from rows of the annotation (without answers if not published).

    ``questions`` and ``annotation`` are the paths of the files; ``prefix`` stands before an image's name in the first.
    """
    lines = [
        {"image": prefix + row[layout.image], "question": row["question"], "question_id": row["questionId"]}
        | ({"answer": row["answers"][0]} if "answers" in row else {})
        for row in rows
    ]
    head = {"dataset_name": layout.benchmark, "dataset_version": "1.0", "dataset_split": split}
    return {questions: lines, annotation: {**head, "data": [{**row, "data_split": split} for row in rows]}}
