"""DriveLM-nuScenes: perception, prediction, planning and behaviour questions about six camera views of a street.

The score is the challenge's (:mod:`mini_internvl.metrics.drivelm`). Two of its four parts need a judge: without one,
accuracy, language and the distance half of match are computed and the final score is left out.
The paper stitches the six views into one image and writes coordinates as 0 to 1000 of it; answers are mapped back to
the camera's own pixels before they are scored or exported. ``official`` gives six named views and leaves coordinates
alone.

Files: ``v1_1_val_nus_q_only.json`` (published without answers), or ``v1_1_val_nus.json`` or ``test_eval.json`` in the
same layout with answers and tags, as the challenge's extract_data.py writes it. Where InternVL's ``drivelm_val.jsonl``
lies beside them its prompts are used; otherwise the prompt is the question with its coordinates rewritten and, where it
is about objects, the paper's sentence on their form.
``test`` and ``validation`` are scenes of ``v1_1_train_nus.json`` that the domain drivelm leaves out of its training,
with the questions that the challenge would score: they can be scored without its server, and are not the paper's.
Unusual: the judge is asked in our words (the rubric is the official one, 0 to 100), at the official temperature of 0.6.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._drivelm import (
    OBJECTS,
    PROMPTS,
    TRAINING,
    Asked,
    example_frame,
    example_views,
    prompt,
    read_held_out,
    read_prompts,
    read_questions,
)
from mini_internvl.benchmarks._drivelm_views import Stitched, Views
from mini_internvl.benchmarks._example import WorkedExample
from mini_internvl.benchmarks._files import Faults, chosen, locate, with_val
from mini_internvl.benchmarks._tally import Asked as Answered
from mini_internvl.benchmarks._tally import Judge, answers, mean_error, with_answers
from mini_internvl.data import DataError
from mini_internvl.metrics import drivelm as metric
from mini_internvl.records import Item, Part, Prediction, Score

TITLE = "DriveLM"
SPLITS = ("val", "val_q_only", "test", "validation")
UNSCORED = ("val_q_only",)
PROTOCOLS = {
    "paper": "The stitched image, coordinates 0 to 1000 of it, mapped back to camera pixels for the official score.",
    "official": "Six named views, questions and answers in camera pixels as they stand.",
}
PRIMARY_METRIC = "final"
PRIMARY_METRIC_MAX = 1.0
UNJUDGED_METRIC, UNJUDGED_METRIC_MAX = "accuracy", 1.0
FILES = {
    "val": [*with_val("v1_1_val_nus.json"), *with_val("test_eval.json")],
    "val_q_only": with_val("v1_1_val_nus_q_only.json"),
    "test": TRAINING,
    "validation": TRAINING,
}
HINT = "put nuScenes' samples/ or InternVL's stitched images beside the file"
JUDGE_SYSTEM = "You grade answers to driving questions against a reference answer."
JUDGE_TEMPERATURE = 0.6
JUDGE_PROMPT = """Compare the answer with the reference answer and grade it from 0 to 100.
The closer the answer's meaning is to the reference, the higher the grade; use the whole scale in single steps, such \
as 37, 64 or 81. Write the grade as a number and nothing else.
Reference answer: {gold}
Answer to grade: {answer}"""


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, id ``scene_frame_number``; DataError names what is wrong with the files.

    A stitched image is made when it is first opened, so listing the items makes none.
    """
    name, kind = chosen("split", split, SPLITS), chosen("protocol", protocol, PROTOCOLS)
    prompts = read_prompts(root, "drivelm") if kind == "paper" else None
    try:
        path = locate(root, "drivelm", FILES[name])
    except DataError:
        if prompts is None or name not in UNSCORED:
            raise
        yield from _converted(*prompts)
        return
    held_out = FILES[name] is TRAINING
    asked = read_held_out(path, name) if held_out else read_questions(path, scored=name not in UNSCORED)
    texts = {row["id"]: row["text"] for row in prompts[1]} if prompts and not held_out else {}
    images = _all_images(path, asked, kind)
    for question in asked:
        text = question.row["Q"] if kind == "official" else texts.get(question.id) or prompt(question.row["Q"])
        reference = {"question": question.row["Q"], "answer": None, "part": question.part}
        reference |= {"scene": question.frame.scene, "frame": question.frame.token, "number": question.number}
        reference |= {"tag": question.row.get("tag") or [], "stitched": kind == "paper"}
        if name not in UNSCORED:
            reference["answer"] = question.row["A"]
        yield _item(question.id, images[question.frame.name], text, reference)


def _all_images(path: Path, asked: Sequence[Asked], protocol: str) -> dict[str, list[Part]]:
    """The image parts of every frame; DataError lists all frames that lack a view."""
    views, faults = Views(path), Faults(path)
    images: dict[str, list[Part]] = {}
    for frame in {question.frame.name: question.frame for question in asked}.values():
        name = f"{frame.name}.jpg"
        try:
            if protocol == "paper":
                images[frame.name] = [{"type": "image", "image": views.whole(name, frame.views)}]
            else:
                single = views.single(frame.views)
                images[frame.name] = [
                    {"type": "image", "image": str(view), "name": camera} for camera, view in single.items()
                ]
        except DataError as error:
            faults.add(name, str(error))
    faults.check(HINT)
    return images


def _converted(path: Path, rows: Sequence[dict[str, Any]]) -> Iterator[Item]:
    """Items of InternVL's file alone."""
    views, faults = Views(path), Faults(path)
    found = list[str | Stitched]()
    for row in rows:
        try:
            found.append(views.whole(row["image"], None))
        except DataError as error:
            faults.add(row["image"], str(error))
    faults.check(HINT)
    for row, image in zip(rows, found, strict=True):
        scene, frame, number = [*row["id"].split("_"), "", "0"][:3]
        reference = {"question": row["question"], "answer": None, "part": "", "scene": scene, "frame": frame}
        reference |= {"number": int(number) if number.isdecimal() else 0, "tag": [], "stitched": True}
        yield _item(row["id"], [{"type": "image", "image": image}], row["text"], reference)


def _item(name: str, images: Sequence[Part], text: str, reference: dict[str, Any]) -> Item:
    content: list[Part] = [*images, {"type": "text", "text": text}]
    messages: Any = [{"role": "user", "content": content}]
    return Item(id=name, messages=messages, reference=reference, max_tiles=12, max_new_tokens=200)


def _answer(item: Item, text: str) -> str:
    """An answer with coordinates in the camera's pixels."""
    return metric.to_cameras(text) if item.reference["stitched"] else text


@with_answers(PROTOCOLS)
def score(asked: Answered, protocol: str, judge: Judge | None) -> Score:
    """``final``, ``accuracy``, ``language`` and its parts from 0 to 1; ``chatgpt``, ``match`` and its halves to 100.

    Notes: ``dropped`` counts questions that the graph of their frame leaves out, ``broken`` those on which the official
    script would stop, ``judge_unreadable`` replies without a number (graded 0). ValueError: the items have no answers.
    """
    if any(item.reference["answer"] is None for item, _ in asked):
        raise ValueError("drivelm: these questions have no published answers; export the predictions instead")
    results = metric.collect(_grouped(asked))
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    counts: dict[str, int] = {}

    def put(name: str, single: Sequence[float]) -> None:
        if single:
            values[name], errors[name] = math.fsum(single) / len(single), mean_error(single)
            counts[name] = len(single)

    grade = _Grade(judge) if judge else None
    put("accuracy", results.accuracy)
    if grade:
        put("chatgpt", metric.judge_scores(results.judged, grade))
    put("match/distance", [100 * f1 for f1 in results.match])
    if grade:
        graded = metric.judge_scores(results.match_judged, grade)
        put("match", [(100 * f1 + mark) / 2 for f1, mark in zip(results.match, graded, strict=True)])
        put("match/judge", graded)
    if results.language:
        # A stray line break must not shift all later answers, as it would in the official script.
        language = metric.language_scores(results.language, line_breaks="space")
        values |= {"language": metric.language_part(language)} | {f"language/{k}": v for k, v in language.items()}
        counts |= {name: len(results.language) for name in values if name.startswith("language")}
        if {"accuracy", "chatgpt", "match"} <= set(values):
            parts = {name: values[name] for name in ("accuracy", "chatgpt", "match")}
            values = {"final": metric.final_score(**parts, language=language)} | values
    notes = {"dropped": results.kept.count(False), "broken": len(results.broken)}
    notes |= {"judge_unreadable": grade.unreadable} if grade else {}
    missing = "" if "final" in values else _missing(values, judged=grade is not None)
    return Score(
        benchmark="drivelm",
        values=values,
        items=len(asked),
        errors=errors,
        counts=counts,
        partial=missing,
        notes=notes,
    )


def _missing(values: dict[str, float], *, judged: bool) -> str:
    if not judged:
        return "without a judge, chatgpt, the judged half of match and the final score are missing"
    parts = [name for name in ("accuracy", "chatgpt", "language", "match") if name not in values]
    return f"no scored answer belongs to {' or '.join(parts)}, so the final score is missing"


def _grouped(asked: Answered) -> list[list[metric.Question]]:
    """Questions by frame, in their official order."""
    frames: dict[str, list[tuple[Item, str]]] = {}
    for item, text in asked:
        frames.setdefault(together(item), []).append((item, text))
    return [
        [
            metric.Question(
                question=item.reference["question"],
                gold=item.reference["answer"],
                answer=_answer(item, text),
                tags=item.reference["tag"],
            )
            for item, text in sorted(group, key=lambda pair: pair[0].reference["number"])
        ]
        for group in frames.values()
    ]


class _Grade:
    """Asks the judge for a number from 0 to 100."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.unreadable = 0

    def __call__(self, answer: str, gold: str) -> float:
        prompt = JUDGE_PROMPT.format(gold=gold, answer=answer)
        mark = read_grade(self.judge(prompt, temperature=JUDGE_TEMPERATURE, system=JUDGE_SYSTEM))
        self.unreadable += mark is None
        return mark or 0.0


def read_grade(reply: str) -> float | None:
    """The reply as a number, or the first number up to 100 in it, as in "85/100"; ``None`` without one."""
    try:
        mark = float(reply)
    except ValueError:
        numbers = (float(number) for number in re.findall(r"(?<![\d.-])\d{1,3}(?:\.\d+)?(?!\d)", reply))
        return next((number for number in numbers if number <= 100), None)
    return mark if math.isfinite(mark) else None


def together(item: Item) -> str:
    """The frame, whose first answer decides which of the others count."""
    return f"{item.reference['scene']}_{item.reference['frame']}"


def right(item: Item, text: str) -> bool:
    """Whether an answer equals the true one; all points found for a match question, the same words for prose."""
    answer, gold = _answer(item, text), item.reference["answer"] or ""
    tags = item.reference["tag"]
    if metric.ACCURACY in tags:
        return answer == gold
    if metric.MATCH in tags:
        try:
            return metric.match_points(answer, gold)[1] > 0.999
        except ValueError:
            return False
    return re.findall(r"\w+", answer.lower()) == re.findall(r"\w+", gold.lower())


def export(items: Iterable[Item], predictions: Iterable[Prediction], folder: str | Path) -> list[Path]:
    """``output.json`` for the official scripts; ``submission.json`` for the server: fill in its first six fields."""
    results = [
        {
            "id": item.id,
            "question": item.reference["question"],
            "answer": _answer(item, text),
            "gt_answer": item.reference["answer"] or "",
        }
        for item, text in answers(items, predictions)
    ]
    wrapper = {"method": "", "team": "", "authors": [""], "email": "", "institution": "", "country": ""}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "output.json", folder / "submission.json"]
    contents: tuple[Any, ...] = (results, {**wrapper, "results": results})
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")
    return paths


_SCENE = "What are the important objects in the current scene?"
_MOVING = "What is the moving status of object <c1,CAM_FRONT,800.0,450.0>? Options: A. Going ahead. B. Stopped."
_NOTICE = "What object should the ego vehicle notice first?"
_SAFE = "In this scenario, what are safe actions to take for the ego vehicle?"
_BEHAVIOUR = "Predict the behavior of the ego vehicle. Options: A. Going straight. B. Turning left."
_BUS = "There is a red bus to the front of the ego vehicle. Its ID is <c1,CAM_FRONT,800.0,450.0>."
_TRAM = "There is a tram – straßenbahn – to the back. Its ID is <c1,CAM_BACK,400.5,300.2>."

EXAMPLE = WorkedExample(
    files={
        "v1_1_val_nus.json": {
            "scene1": {
                "key_frames": {
                    "frame1": example_frame(
                        ("perception", _SCENE, _BUS, 2),
                        ("perception", _MOVING, "B", 0),
                        ("prediction", _NOTICE, "Firstly notice that <c1,CAM_FRONT,800.0,450.0>.", 3),
                        ("prediction", "Is <c9,CAM_BACK,5.5,6.5> a traffic sign?", "No.", 0),
                        ("planning", _SAFE, "Brake gently to a stop.", 1),
                        ("behavior", _BEHAVIOUR, "A", 0),
                    ),
                    "frame2": example_frame(("perception", _SCENE, _TRAM, 2), ("behavior", _BEHAVIOUR, "B", 0)),
                }
            }
        },
        "v1_1_val_nus_q_only.json": {
            "scene2": {"key_frames": {"frame1": example_frame(("perception", _SCENE, "", 2))}}
        },
        PROMPTS: [
            {
                "id": "scene2_frame1_0",
                "image": "scene2_frame1.jpg",
                "conversations": [
                    {"from": "human", "value": f"<image>\n{_SCENE} {OBJECTS}"},
                    {"from": "gpt", "value": ""},
                ],
                "question_old": _SCENE,
            }
        ],
    },
    images=example_views(),
    good=[
        "There is a red bus to the front of the ego vehicle. Its ID is <c1,CAM_FRONT,[500, 250]>.",
        "B",
        "Firstly notice that <c1,CAM_FRONT,[500, 250]>.",
        "No.",
        "Brake gently to a stop.",
        "A",
        "There is a tram – straßenbahn – to the back. Its ID is <c1,CAM_BACK,400.5,300.2>.",
        "B",
    ],
    bad=[
        "Something is near <c1,CAM_FRONT,[500, 250]>.",
        "B.",
        "Firstly notice that <c1,CAM_FRONT,[500,900]>.",
        "no",
        "",
        "a",
        "Nothing.",
        "Turning left.",
    ],
    judge={
        "Answer to grade: Brake gently to a stop.": "96",
        "Answer to grade: Firstly notice that <c1,CAM_FRONT,800.0,450.0>.": "91",
        "Answer to grade: Firstly notice that <c1,CAM_FRONT,800.0,900>.": "12",
        "Reference answer: Brake gently to a stop.\nAnswer to grade: ": "3",
    },
)
