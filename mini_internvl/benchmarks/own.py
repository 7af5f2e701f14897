"""Data of one's own: every question of every row, asked as the row trains it and scored by the shape of its answers.

The rows are training rows in any format that training reads (docs/data.md). A question is asked with the row's own
prompt, images and tile limit; earlier turns go along with their true answers, unless the row is ``independent``. The
shape is found for each kind of question from all reference answers of the split (``metrics/shapes.py``), and from all
of them whether a comma in numbers is a decimal one (then ``decimal`` of a reference is ","): questions are
of a kind when they differ only in numbers, quoted or tagged phrases and options; a kind of few answers joins the
others with the same first words. The primary metric is the mean over shapes of the main metric of each. Boxes in crops
are joined and scored in the whole picture, too (``_joined.py``).
By definition: there is no official scorer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from mini_internvl.benchmarks import _vqa
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen, find
from mini_internvl.benchmarks._joined import Crops, wholes
from mini_internvl.benchmarks._tally import Asked, Judge, Tally, empty_answers, mean_error, with_answers
from mini_internvl.data import DataError, Fault, place_of
from mini_internvl.data.check import trainable
from mini_internvl.data.files import ENDINGS
from mini_internvl.data.rows import read_rows
from mini_internvl.inputs import boxes as written
from mini_internvl.inputs import questions
from mini_internvl.inputs.messages import Turn, image_parts, normalise
from mini_internvl.metrics import shapes
from mini_internvl.records import Item, Sample, Score

TITLE = "Own data"
SPLITS = ("test", "validation", "train")
PROTOCOLS = {"shape": "Every kind of question by the shape of its reference answers."}
PRIMARY_METRIC = "mean"
LOWER_IS_BETTER = tuple(f"{shape}/{shapes.ERROR}" for shape in ("count", "number"))
METRICS = {
    "mean": "The mean over shapes of answers of the main metric of each, from 0 to 100.",
    "exact": "Per cent of numbers that are right.",
    "within_5_percent": "Per cent of numbers that differ from the reference by at most 5 %.",
    "mae": "Mean absolute error, in the unit of the data; an answer without a number counts as 0.",
    "f1": "Boxes that overlap a reference box of their own by half or more, precision and recall in one, per answer.",
    "picture_f1": "The same per class and whole picture that was cut into crops, their boxes joined.",
    "mean_iou": "Overlaps of boxes with their reference boxes, by the larger number of boxes; no box counts 0.",
}
"""What the metrics mean, for reports."""
FEWEST = 5  # answers of a kind of question from which its shape is found; fewer join the wider kind
CAPTION_METRICS = {"rouge_l": "ROUGE_L", "cider": "CIDEr", "bleu_4": "Bleu_4"}  # ours -> the scorer's name
MIN_TOKENS, MAX_TOKENS = 32, 1024  # limits of an answer's length


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, id ``ROW`` or ``ROW/NUMBER``; ``root`` may be the file of rows itself.

    DataError lists rows that cannot be used, and says which file is missing.
    """
    split = chosen("split", split, SPLITS)
    chosen("protocol", protocol, PROTOCOLS)
    asked: list[tuple[str, Sample, tuple[Turn, ...], str]] = []
    file = _file(Path(root), split)
    for sample in _read(file):
        pairs = list(questions.asked(sample))
        for number, (conversation, answer) in enumerate(pairs, 1):
            name = f"{sample.id}/{number}" if len(pairs) > 1 else sample.id
            asked.append((name, sample, conversation, answer))
    found = shapes_of([(conversation[-1].text, answer) for *_, conversation, answer in asked])
    decimal = {"decimal": ","} if shapes.decimal_comma(answer for *_, answer in asked) else {}
    longest: dict[str, int] = defaultdict(int)
    for (*_, answer), (_, shape) in zip(asked, found, strict=True):
        longest[shape] = max(longest[shape], len(answer.encode()))
    crops = Crops(file.parent)
    parts = [
        crops.part([one.source for one in image_parts(conversation)], conversation[-1].text) if shape == "boxes" else {}
        for (_, _, conversation, _), (_, shape) in zip(asked, found, strict=True)
    ]
    crops.complete([part for part in parts if part])
    names = _vqa.unique(name for name, *_ in asked)
    every = zip(names, asked, found, parts, strict=True)
    for name, (_, sample, conversation, answer), (kind, shape), part in every:
        yield Item(
            id=name,
            messages=cast(Any, conversation),
            reference={"answer": answer, "kind": kind, "shape": shape, **decimal, **({"crop": part} if part else {})},
            max_tiles=sample.max_tiles,
            max_new_tokens=_limit(longest[shape]),
        )


def shapes_of(asked: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(kind, shape) of each of the (question, reference answer) pairs of a split."""
    levels = [questions.kinds(question) for question, _ in asked]
    sizes = Counter(kind for kinds in levels for kind in kinds)
    kept = [next((kind for kind in kinds[:2] if sizes[kind] >= FEWEST), kinds[0]) for kinds in levels]
    members: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for kind, pair in zip(kept, asked, strict=True):
        members[kind].append(pair)
    comma = shapes.decimal_comma(answer for _, answer in asked)
    found = {kind: shapes.find_shape(pairs, comma=comma) for kind, pairs in members.items()}
    return [(kind.removeprefix("= "), found[kind]) for kind in kept]


def _file(root: Path, split: str) -> Path:
    if root.is_file():
        return root
    found = find(root, "own", [f"{split}{ending}" for ending in ENDINGS])
    if found is None:
        raise DataError(
            f"{root} holds no rows of the split {split}; give the file of rows itself, or a folder with "
            f"{split}.jsonl (or {', '.join(ENDINGS[1:])})"
        )
    return found


def _read(path: Path) -> Iterator[Sample]:
    """The samples of a file; DataError lists the rows that cannot be used."""
    faults = list[Fault]()
    for sample in read_rows(path):
        if isinstance(sample, Fault):
            faults.append(sample)
            continue
        try:
            trainable(normalise(sample.messages))
        except ValueError as error:
            file, place = place_of(sample.place)
            faults.append(Fault(file=Path(file), place=place, reason=str(error)))
            continue
        yield sample
    if faults:
        raise DataError.of(faults, "mend the rows or take them out")


def _limit(longest: int) -> int:
    """Tokens of an answer: as many as the longest reference has bytes, rounded up, so that few limits differ."""
    return min(MAX_TOKENS, max(MIN_TOKENS, 1 << longest.bit_length()))


@with_answers(PROTOCOLS)
def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
    """``SHAPE/METRIC`` in per cent, mean absolute errors in the data's unit, and ``mean``; no judge is needed.

    An answer without a number counts as 0 in the mean absolute error. Notes: ``empty`` counts blank answers.
    """
    tally = Tally()
    captions = list[tuple[str, str]]()
    for item, text in asked:
        shape, gold = item.reference["shape"], item.reference["answer"]
        for metric, value in shapes.results(shape, _question(item), gold, text, comma=_comma(item)).items():
            tally.add(value, f"{shape}/{metric}")
        if shape == "caption":
            captions.append((text.strip(), gold))
    for whole in wholes((item.reference, text) for item, text in asked):
        tally.add(whole.f1(shapes.RIGHT_IOU), "boxes/picture_f1")
    values = {metric: tally.value(metric, _scale(metric)) for metric in tally.results}
    errors = {metric: tally.error(metric, _scale(metric)) for metric in tally.results}
    counts = {metric: len(results) for metric, results in tally.results.items()}
    if captions:
        _add_captions(captions, values, errors, counts)
    main = [metric for shape, name in shapes.MAIN.items() if (metric := f"{shape}/{name}") in values]
    mean = math.fsum(values[metric] for metric in main) / max(1, len(main))
    error = math.hypot(*(errors[metric] for metric in main)) / max(1, len(main))
    return Score(
        benchmark="own",
        values={PRIMARY_METRIC: mean, **values},
        errors={PRIMARY_METRIC: error, **errors},
        counts={PRIMARY_METRIC: len(asked), **counts},
        items=len(asked),
        notes=empty_answers(asked),
    )


def _add_captions(
    captions: Sequence[tuple[str, str]], values: dict[str, float], errors: dict[str, float], counts: dict[str, int]
) -> None:
    from mini_internvl.metrics.captions import caption_scores

    found = caption_scores([text for text, _ in captions], [[gold] for _, gold in captions], line_breaks="space")
    for metric, name in CAPTION_METRICS.items():
        values[f"caption/{metric}"] = 100 * found[name]
        counts[f"caption/{metric}"] = len(captions)
        if metric != "bleu_4":  # which is no mean over items
            errors[f"caption/{metric}"] = 100 * mean_error(found.per_item[name])


def _scale(metric: str) -> float:
    return 1.0 if metric in LOWER_IS_BETTER else 100.0


def _question(item: Item) -> str:
    return normalise(item.messages)[-1].text


def _comma(item: Item) -> bool:
    return item.reference.get("decimal") == ","


def right(item: Item, text: str, protocol: str = "shape") -> bool:
    """Whether one answer alone counts: graded metrics at their usual threshold, captions by the same words."""
    gold = item.reference["answer"]
    return shapes.right(item.reference["shape"], _question(item), gold, text, comma=_comma(item))


def boxes(item: Item, text: str) -> tuple[list[written.Box], list[written.Box]]:
    """True and answered boxes as shares of the image."""
    gold, answered = (
        [cast(written.Box, tuple(edge / 1000 for edge in box)) for _, some in written.parse(said) for box in some]
        for said in (item.reference["answer"], text)
    )
    return gold, answered


def _row(name: str, *turns: str, **more: Any) -> dict[str, Any]:
    said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    return {"id": name, "image": "images/1.png", "conversations": said, **more}


_TREES = "<ref>tree</ref><box>[[100, 100, 300, 300], [500, 500, 700, 700]]</box>"
_SENTENCE = "A small boat with two people crosses the lake while the sun sets behind the hills on the far shore."
EXAMPLE = WorkedExample(
    files={
        "test.jsonl": [
            _row("1", "Is there a tree?", "yes", "How many trees are there?", "2", independent=True, max_tiles=1),
            _row("2", "Detect <ref>tree</ref>", _TREES),
            _row("3", "How tall is it, in metres?", "12.5", "Which season is it?\nA. spring\nB. autumn", "B"),
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "image": "images/2.png"},
                            {"type": "text", "text": "Which kind of tree is it?"},
                        ],
                    },
                    {"role": "assistant", "content": "Scots pine"},
                ]
            },
            _row("5", "What does the sign say?", "No parking from Monday to Friday"),
            _row("6", "Describe the image.", _SENTENCE),
        ]
    },
    images={"images/1.png": ExampleImage(), "images/2.png": ExampleImage(seed=1)},
    good=[
        "Yes, there is.",
        "2 trees",
        _TREES,
        "about 12.4",
        "B. autumn",
        "scots pine.",
        "No parking Monday to Friday",
        _SENTENCE,
    ],
    bad=["No.", "3", "tree[[100, 100, 300, 300]]", "20", "A", "pine", "Stop", "A dog."],
)
