"""What the RSVQA benchmarks and domains share: reading the files, the prompt and the metrics.

Files come in two forms. InternVL's test files hold one row a question. The authors' own files
(https://rsvqa.sylvainlobry.com) are three for each split, ``STEM_questions.json``, ``STEM_answers.json`` and
``STEM_images.json``, each an object with one list; images are named ``ID.tif``. They list every record of the whole
data set: one of another split is ``{"id": 7, "active": false}`` there and is passed over. A question has its answer
under the first of its ``answers_ids``.
Source: syvlo/RSVQA, ``AutomaticDB/DataSpecification.md``, ``AutomaticDB/Splits.py`` and ``VQA_model/VQALoader.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _questions, _vqa
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample, table_rows
from mini_internvl.benchmarks._files import image_folders, image_paths, locate, read_rows, with_val
from mini_internvl.benchmarks._questions import Images, Question, fault, lacking, said
from mini_internvl.benchmarks._tally import scorer
from mini_internvl.data import Fault, Row
from mini_internvl.data.files import scan
from mini_internvl.metrics.rsvqa import NUMBERS, rsvqa_right
from mini_internvl.records import Item, Score

PROTOCOLS = {"paper": "InternVL's script: exact words but for case; the average leaves counts and areas out."}
PRIMARY_METRIC = "accuracy"
COLUMNS = ("id", "image", "question", "gt_answer", "type")
SOURCE = "https://rsvqa.sylvainlobry.com"
QUESTIONS = "{}_questions.json"
NEW_TOKENS = 50


def read_items(
    root: str | Path, benchmark: str, name: str, images: Sequence[str], *, stem: str, prefix: str = ""
) -> Iterator[Item]:
    """One item a row of InternVL's file, or a question of the authors' where that is not there.

    An id that comes again gets a number, such as ``7#2``.

    Args:
        root: the data folder.
        benchmark: its folder below.
        name: of InternVL's file; "" where there is none.
        images: folders of the images, beside the file or below ``images/``.
        stem: how the names of the authors' files of the split begin.
        prefix: put before every id.

    Raises:
        DataError: a file, a field or an image is missing, or a field is of another kind.
    """
    original = QUESTIONS.format(stem)
    path = locate(root, benchmark, [*(with_val(name) if name else ()), original])
    if path.name == original:
        yield from _questions.items(read_original(path.parent, stem, images), max_new_tokens=NEW_TOKENS, prefix=prefix)
        return
    rows = read_rows(path, (), names=COLUMNS)
    names = _vqa.unique(f"{prefix}{row['id']}" for row in rows)
    places = image_paths(path, [str(row["image"]) for row in rows], *image_folders(path, *images))
    for row, item_id, image in zip(rows, names, places, strict=True):
        kind, text, answer = (str(row[key]) for key in ("type", "question", "gt_answer"))
        asked = _question(item_id, image, kind, text, answer)
        yield _vqa.ask(item_id, [image], asked.prompt, asked.reference, max_tiles=12, max_new_tokens=NEW_TOKENS)


def _question(name: str, image: str, kind: str, text: str, answer: str) -> Question:
    return Question(
        id=name,
        image=image,
        prompt=_vqa.short_question(text, vlmevalkit=True),
        answer=answer,
        reference={"type": kind, "answer": answer, "question": text},
    )


def read_original(folder: Path, stem: str, images: Sequence[str]) -> Iterator[Question | Fault]:
    """The questions of a split in the authors' files, in their order, and a fault for each that cannot be used.

    Args:
        folder: of the three files; ``STEM_images.json`` may be left out.
        stem: how their names begin.
        images: folders of the images, beside the files or below ``images/``.
    """
    path = _questions.needed(folder, QUESTIONS.format(stem), SOURCE)
    answers_path = _questions.needed(folder, f"{stem}_answers.json", SOURCE)
    images_path = folder / f"{stem}_images.json"
    answers: dict[Any, str] = {}
    shown: set[Any] | None = set() if images_path.is_file() else None
    for row in _active(answers_path, "answers"):
        if isinstance(row, Fault):
            yield row
        else:
            answers[row.id] = said(row.raw, "answer")
    for row in _active(images_path, "images") if shown is not None else ():
        if isinstance(row, Fault):
            yield row
        elif shown is not None:
            shown.add(row.id)
    places = Images(*image_folders(path, *images))
    for row in _active(path, "questions"):
        yield row if isinstance(row, Fault) else _read(row, answers, answers_path.name, shown, places)


def _active(path: Path, key: str) -> Iterator[Row | Fault]:
    """The records of the split."""
    return (row for row in scan(path, key) if isinstance(row, Fault) or row.raw.get("active") is not False)


def _read(
    row: Row, answers: Mapping[str, str], answers_file: str, shown: set[Any] | None, places: Images
) -> Question | Fault:
    if wrong := lacking(row.raw, "id", "question", "type", "img_id"):
        return fault(row, wrong)
    ids = row.raw.get("answers_ids")
    if not isinstance(ids, list) or not ids:
        return fault(row, "answers_ids names no answer")
    if str(ids[0]) not in answers:
        return fault(row, f"{answers_file} has no answer {ids[0]} in this split")
    answer = answers[str(ids[0])]
    if not answer:
        return fault(row, f"the answer {ids[0]} is empty")
    image = said(row.raw, "img_id")
    if shown is not None and image not in shown:
        return fault(row, f"the image {image} is not of this split")
    name = f"{image}.tif"
    if (place := places.find(name)) is None:
        return fault(row, places.missing(name))
    return _question(said(row.raw, "id"), place, said(row.raw, "type"), said(row.raw, "question"), answer)


def right(item: Item, text: str, protocol: str = "paper") -> bool:
    """Whether an answer counts; numbers only need the gold number's range."""
    return rsvqa_right(item.reference["type"], text, item.reference["answer"])


def make_score(benchmark: str) -> Callable[..., Score]:
    """``accuracy`` (the paper's average), ``accuracy_all`` with counts and areas, and ``type/...`` for each type."""
    return scorer(benchmark, PROTOCOLS, right, metrics=_metrics, order=("accuracy", "accuracy_all"))


def _metrics(item: Item) -> list[str]:
    kind = item.reference["type"]
    return ["accuracy_all", f"type/{kind}", *([] if kind in NUMBERS else ["accuracy"])]


def original_example(splits: Mapping[str, Sequence[Mapping[str, Any]]], folder: str) -> dict[str, Any]:
    """The authors' files in small, with the images 3 and, not there, 4: ``files`` and ``images`` of an example.

    ``splits`` gives for each beginning of names the fields of the questions 2, 3, ...; ``answer`` is the answers
    file's, ``None`` for none.
    """
    files: dict[str, Any] = {}
    for stem, questions in splits.items():
        asked: list[dict[str, Any]] = [{"id": 0, "active": False}, {"id": 1, "active": False}]
        answered = list(asked)
        for number, given in enumerate(questions, 2):
            row = {"id": number, "img_id": 3, "answers_ids": [number], "active": True, **given}
            answer = row.pop("answer")
            asked.append(row)
            if answer is not None:
                answered.append({"id": number, "question_id": number, "answer": answer, "active": True})
        images = [*asked[:2], {"id": 2, "active": False}, {"id": 3, "active": True}, {"id": 4, "active": True}]
        rows = {"questions": asked, "answers": answered, "images": images}
        files |= {f"{stem}_{name}.json": {name: records} for name, records in rows.items()}
    return {"files": files, "images": {f"{folder}/3.tif": ExampleImage(width=64, height=64)}}


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
