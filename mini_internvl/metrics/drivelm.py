"""DriveLM: accuracy, judged score, language and match of the challenge, gated by a frame's first answer.

Points are pairs of decimal numbers in a text, in pixels of a 1600x900 camera image; whole numbers are not points.
The first question of a frame is always scored, and the gold points that its answer found form the frame's graph. A
later question counts only if all points it names are in the graph: a poor first answer drops questions from the score.
Unusual: cameras and object names are not compared; an F1 of a perfect answer is 0.99999999; ``match`` is the mean of F1
and of a judge's view of the same answers. Where the official script would stop (an odd count of numbers in a gold
answer or a question) the answer counts as wrong.
Source: DriveLM ``challenge/evaluation.py``; InternVL ``drivelm/evaluate.py`` for the mapping of coordinates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mini_internvl.metrics.captions import caption_scores

ACCURACY, JUDGED, LANGUAGE, MATCH = range(4)  # tags of a question: which scores its answer takes part in
WEIGHTS: Mapping[str, float] = {"chatgpt": 0.4, "language": 0.2, "match": 0.2, "accuracy": 0.2}
BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
NEAR = 16.0  # points closer than this, horizontal and vertical distance added, match
CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
"""Cells of the stitched image, row by row."""
COLUMNS, ROWS = 3, 2
CELL = (896, 448)  # width and height of a camera's cell in the stitched image
CAMERA_SIZE = (1600, 900)  # width and height of a camera's own image

Point = tuple[float, float]
Judge = Callable[[str, str], float]  # (answer, gold answer) -> 0 to 100

_DECIMAL = re.compile(r"\d+\.\d+")
_COORDINATE = r"\s*-?[0-9]*\.?[0-9]+\s*"
_STITCHED_TAG = re.compile(rf"<c[^,]*,[^,]*,\s*\[{_COORDINATE},{_COORDINATE}\]\s*>")
_ANY_TAG = re.compile(r"<c\d[^<>]*>")
_CAMERA_TAG = re.compile(r"<(c[^,<>]*),\s*(CAM_[A-Z_]+),\s*(-?\d+(?:\.\d+)?),\s*(-?\d+(?:\.\d+)?)\s*>")


# Coordinates.


def to_cameras(text: str) -> str:
    """Tags ``<c1,CAM_FRONT,[500, 250]>`` (0 to 1000 of the stitched image) -> ``<c1,CAM_FRONT,800.0,450.0>``.

    As in the original, a space before the camera's name leaves a tag as it is, and a value at the limits of the image
    is written without decimals, so that the matcher does not see it.
    """
    text = text.strip()
    for tag in _STITCHED_TAG.findall(text):
        name, camera, rest = tag.replace("<", "").replace(">", "").split(",", 2)
        if camera in CAMERAS:
            try:
                x, y = in_camera(camera, *json.loads(rest))
            except (ValueError, OverflowError):  # such as ".5", which is no JSON
                continue
            text = text.replace(tag, f"<{name},{camera},{x},{y}>")
    return text


def in_camera(camera: str, across: float, down: float) -> Point:
    """A point of the stitched image (thousandths of its sides) in the camera's pixels: inside, to one decimal."""
    row, column = divmod(CAMERAS.index(camera), COLUMNS)
    placed = []
    for value, cell, count, place, side in (
        (across, CELL[0], COLUMNS, column, CAMERA_SIZE[0]),
        (down, CELL[1], ROWS, row, CAMERA_SIZE[1]),
    ):
        inside = ((value / 1000) * (cell * count) - place * cell) / cell * side
        placed.append(round(max(0, min(side, inside)), 1))
    return placed[0], placed[1]


def in_stitched(camera: str, x: float, y: float) -> Point:
    """The way back: a point in the camera's pixels in thousandths of the stitched image's sides, not rounded."""
    row, column = divmod(CAMERAS.index(camera), COLUMNS)
    return (x / CAMERA_SIZE[0] + column) / COLUMNS * 1000, (y / CAMERA_SIZE[1] + row) / ROWS * 1000


def to_stitched(text: str) -> str:
    """The way back: ``<c1,CAM_FRONT,800.0,450.0>`` -> ``<c1,CAM_FRONT,[500, 250]>``; other cameras stay."""

    def tag(match: re.Match[str]) -> str:
        name, camera, x, y = match.groups()
        if camera not in CAMERAS:
            return match[0]
        across, down = in_stitched(camera, float(x), float(y))
        return f"<{name},{camera},[{round(across)}, {round(down)}]>"

    return _CAMERA_TAG.sub(tag, text)


def odd_tags(text: str) -> list[str]:
    """What is wrong with tags of a text in camera pixels: an unknown camera, a point outside of its image, no point."""
    found = []
    for tag in _ANY_TAG.findall(text):
        match = _CAMERA_TAG.fullmatch(tag)
        if match is None:
            found.append(f"the tag {tag} has no camera and point, as in <c1,CAM_FRONT,800.0,450.0>")
        elif match[2] not in CAMERAS:
            found.append(f"the camera of {tag} is unknown; there are {', '.join(CAMERAS)}")
        elif not (0 <= float(match[3]) <= CAMERA_SIZE[0] and 0 <= float(match[4]) <= CAMERA_SIZE[1]):
            found.append(f"the point of {tag} is outside of the camera's {CAMERA_SIZE[0]}x{CAMERA_SIZE[1]} pixels")
    return found


# Points and the graph.


def points(text: str, *, odd: Literal["drop", "error"] = "error") -> list[Point]:
    """Pairs of consecutive decimal numbers; ValueError if one is left over and ``odd`` is "error"."""
    numbers = [float(number) for number in _DECIMAL.findall(text)]
    if len(numbers) % 2 and odd == "error":
        raise ValueError(f"{len(numbers)} decimal numbers cannot be paired to points")
    return list(zip(numbers[::2], numbers[1::2], strict=False))


def match_points(answer: str, gold: str) -> tuple[list[Point], float]:
    """Gold points that the answer's points find, in the order of the answer, and F1.

    Each answered point in order takes the nearest gold point that is left, the first on a tie, if it is near enough.
    ValueError: the gold answer has an odd count of decimal numbers.
    """
    left = points(gold)
    count = len(left)
    answered = points(answer, odd="drop")
    found: list[Point] = []
    for x, y in answered:
        distances = [abs(x - gx) + abs(y - gy) for gx, gy in left]
        nearest = min((distance for distance in distances if distance < NEAR), default=None)
        if nearest is not None:
            found.append(left.pop(distances.index(nearest)))
    precision = len(found) / (len(answered) + 1e-8)
    recall = len(found) / (count + 1e-8)
    return found, 2 * precision * recall / (precision + recall + 1e-8)


# A whole evaluation.


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a frame with its answer."""

    question: str
    gold: str
    answer: str
    tags: Sequence[int]  # some of ACCURACY, JUDGED, LANGUAGE, MATCH


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Single results of an evaluation; each list has one entry per answer that takes part.

    Pairs are (answer, gold answer); where the judge's are ``None`` the answer is wrong without asking.
    """

    accuracy: list[float] = field(default_factory=list)  # 1 for an answer equal to the gold one, else 0
    language: list[tuple[str, str]] = field(default_factory=list)
    match: list[float] = field(default_factory=list)  # F1
    judged: list[tuple[str, str] | None] = field(default_factory=list)
    match_judged: list[tuple[str, str] | None] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)  # for every question in order: whether it was scored
    broken: list[int] = field(default_factory=list)  # questions that have, or whose gold has, an odd count of decimals


def collect(frames: Sequence[Sequence[Question]]) -> Scored:
    """Single results of frames, each a frame's questions in their order."""
    scored = Scored()
    for frame in frames:
        graph: set[Point] = set()
        for number, question in enumerate(frame):
            wrong = False
            try:
                if number == 0:
                    graph = set(match_points(question.answer, question.gold)[0])
                elif not graph.issuperset(points(question.question)):
                    scored.kept.append(False)
                    continue
            except ValueError:
                scored.broken.append(len(scored.kept))
                wrong = True
            scored.kept.append(True)
            _add(scored, question, wrong=wrong)
    return scored


def _add(scored: Scored, question: Question, *, wrong: bool) -> None:
    pair = (question.answer, question.gold)
    if ACCURACY in question.tags:
        scored.accuracy.append(float(not wrong and question.answer == question.gold))
    if JUDGED in question.tags:
        scored.judged.append(None if wrong else pair)
    if LANGUAGE in question.tags:
        scored.language.append(("", question.gold) if wrong else pair)
    if MATCH in question.tags:
        try:
            f1 = 0.0 if wrong else match_points(*pair)[1]
        except ValueError:
            scored.broken.append(len(scored.kept) - 1)
            f1, wrong = 0.0, True
        scored.match.append(f1)
        scored.match_judged.append(None if wrong else pair)


def judge_scores(pairs: Sequence[tuple[str, str] | None], judge: Judge) -> list[float]:
    """The judge's scores, 0 to 100; what the judge raises passes through."""
    return [0.0 if pair is None else judge(*pair) for pair in pairs]


def language_scores(
    pairs: Sequence[tuple[str, str]], *, line_breaks: Literal["official", "space"] = "official"
) -> dict[str, float]:
    """BLEU-1 to 4, ROUGE-L and CIDEr of (answer, gold answer) pairs."""
    found = caption_scores([answer for answer, _ in pairs], [[gold] for _, gold in pairs], line_breaks=line_breaks)
    return {name: found[name] for name in (*BLEU, "ROUGE_L", "CIDEr")}


def language_part(scores: Mapping[str, float]) -> float:
    """Language as one number: BLEU's mean, ROUGE-L and a tenth of CIDEr, a third each."""
    return sum(scores[name] / 4 / 3 for name in BLEU) + scores["ROUGE_L"] / 3 + scores["CIDEr"] / 10 / 3


def final_score(*, accuracy: float, chatgpt: float, match: float, language: Mapping[str, float]) -> float:
    """The challenge's score, 0 to 1, of accuracy (0 to 1), chatgpt and match (0 to 100) and :func:`language_scores`."""
    parts = {"chatgpt": chatgpt / 100, "language": language_part(language), "match": match / 100, "accuracy": accuracy}
    return sum(parts[name] * weight for name, weight in WEIGHTS.items())
