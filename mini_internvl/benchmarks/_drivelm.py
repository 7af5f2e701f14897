"""DriveLM's files: frames with their questions, read scene by scene, and the questions as the model is asked them.

The official files are one JSON object: scene -> ``key_frames`` -> frame -> ``QA``, ``image_paths``,
``key_object_infos``. The training file has hundreds of MB, so one scene is in memory at a time. Its scenes are split by
their token into training, validation and test: answers to the official validation questions are not published.
Source: DriveLM ``docs/data_prep_nus.md``, ``challenge/extract_data.py``, ``challenge/convert_data.py``.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._example import ExampleImage
from mini_internvl.benchmarks._files import Faults, find, read_rows, with_val
from mini_internvl.data import Fault
from mini_internvl.data.files import scan_members
from mini_internvl.metrics.drivelm import ACCURACY, CAMERAS, JUDGED, LANGUAGE, MATCH, in_stitched, to_stitched

PARTS = ("perception", "prediction", "planning", "behavior")  # a frame's questions are numbered through these in order
TRAINING = ("v1_1_train_nus.json", "QA_dataset_nus/v1_1_train_nus.json")
"""The training file, also where DriveLM's own documentation puts it."""
PROMPTS = "drivelm_val.jsonl"  # InternVL's converted questions
OBJECTS = (
    "Objects are encoded using <c,CAM,[cx,cy]>, where c is the identifier, CAM indicates the camera where the object's "
    "center point is situated, and x, y represent the horizontal and vertical coordinates of the center point of the "
    "2D bounding box."
)
"""The paper's sentence for questions about objects."""

MOVING = ("Going ahead.", "Turn right.", "Turn left.", "Stopped.", "Back up.", "Reverse parking.")
TURNS = (
    *("going straight", "steering to the left", "slightly steering to the left"),
    *("steering to the right", "slightly steering to the right"),
)
SPEEDS = ("very fast", "fast", "with normal speed", "slowly")
BEHAVIOURS = (
    *(f"The ego vehicle is {turn}. The ego vehicle is driving {speed}." for turn in TURNS for speed in SPEEDS),
    "The ego vehicle is going straight. The ego vehicle is not moving.",
)
CHOICES: Mapping[str, Sequence[str]] = {
    "what is the moving status of object": MOVING,
    "predict the behavior of the ego vehicle": BEHAVIOURS,
}
"""Part of a question, in small letters -> the answers that it may have: the challenge asks these as multiple choice."""
LETTERS = "ABCD"

HELD_OUT = 20  # one scene of so many is for validation, one for testing


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One key frame of an official file."""

    scene: str
    token: str
    questions: Sequence[tuple[str, Any]]  # (part, the file's row of it), in the official order
    views: Mapping[str, str]  # camera -> image as the file names it
    objects: Mapping[str, Any]  # tag -> what is known of the object; empty in the validation files

    @property
    def name(self) -> str:
        """Scene and frame, as ids and stitched images begin."""
        return f"{self.scene}_{self.token}"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question of the official file."""

    id: str
    frame: Frame
    number: int  # in its frame, from 0
    part: str
    row: Mapping[str, Any]  # ``Q``, ``A``, ``tag`` and what else the file has


def split_of(scene: str) -> str:
    """``train``, ``validation`` or ``test``: the same for a scene wherever it stands."""
    drawn = int(hashlib.sha256(scene.encode()).hexdigest()[:8], 16) % HELD_OUT
    return {0: "validation", 1: "test"}.get(drawn, "train")


def frames(path: Path, keep: Callable[[str], bool] = lambda scene: True) -> Iterator[Frame | Fault]:
    """The frames of the scenes that ``keep`` takes, in the file's order; DataError where it is no object of scenes."""

    def fault(place: str, reason: str) -> Fault:
        return Fault(file=path, place=f"row {place}", reason=reason)

    seen = set[str]()
    for row in scan_members(path):
        if isinstance(row, Fault):
            yield row
            continue
        scene, data = row.id, row.raw["value"]
        if not keep(scene):
            continue
        found = data.get("key_frames") if isinstance(data, dict) else None
        if scene in seen or not isinstance(found, dict):
            yield fault(scene, "the scene is there twice" if scene in seen else "no key_frames")
            continue
        seen.add(scene)
        for token, frame in found.items():
            blocks = frame.get("QA") if isinstance(frame, dict) else None
            if not isinstance(blocks, dict):
                yield fault(f"{scene}_{token}", "no QA")
                continue
            for part in sorted(blocks.keys() - set(PARTS)):
                yield fault(f"{scene}_{token}", f'"{part}" is no part of the questions; there are {", ".join(PARTS)}')
            yield Frame(
                scene=scene,
                token=token,
                questions=[(part, row) for part in PARTS for row in _list(blocks.get(part))],
                views=_object(frame.get("image_paths")),
                objects=_object(frame.get("key_object_infos")),
            )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def read_questions(path: Path, *, scored: bool) -> list[Asked]:
    """All questions of an official file in its order.

    ``scored`` asks for answers and tags. DataError lists the frames and questions that lack something.
    """
    faults = Faults(path)
    found = []
    for frame in frames(path):
        if isinstance(frame, Fault):
            faults.found.append(frame)
            continue
        for number, (part, row) in enumerate(frame.questions):
            name = f"{frame.name}_{number}"
            fault = _fault(row, scored=scored)
            if fault:
                faults.add(name, fault)
            found.append(Asked(id=name, frame=frame, number=number, part=part, row=row))
    faults.check("it needs Q, and to be scored A and tag, which the challenge's extract_data.py writes")
    return found


def _fault(row: Any, *, scored: bool) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("Q"), str):
        return "no Q"
    if scored and not isinstance(row.get("A"), str):
        return "no A"
    tags = row.get("tag")
    if scored and not (isinstance(tags, list) and all(tag in (0, 1, 2, 3) for tag in tags)):
        return "no tag of 0 to 3"
    return ""


def read_held_out(path: Path, split: str) -> list[Asked]:
    """The questions of the training file's scenes of a split that the challenge would score, with their tags.

    They are chosen as in ``extract_data.py``, except that a yes-or-no answer begins with the word, and that a question
    is asked once. Rows without question or answer are passed over: converting the file reports them.
    """
    found = []
    for frame in frames(path, lambda scene: split_of(scene) == split):
        if isinstance(frame, Fault):
            continue
        for number, (place, tag) in enumerate(_chosen(frame)):
            part, row = frame.questions[place]
            row = {**as_choices(row, f"{frame.name}_{place}"), "tag": [tag]}
            found.append(Asked(id=f"{frame.name}_{number}", frame=frame, number=number, part=part, row=row))
    return found


def _chosen(frame: Frame) -> list[tuple[int, int]]:
    """(place among the frame's questions, tag), in the order in which the challenge scores them."""
    texts = [
        (part, row["Q"].lower(), row["A"].lower())
        if not _fault(row, scored=False) and isinstance(row.get("A"), str) and row["A"].strip()
        else ("", "", "")
        for part, row in frame.questions
    ]
    described = [str(_object(known).get("Visual_description") or "") for known in frame.objects.values()]
    classes = [text.split(".")[0].lower() for text in described]
    found: dict[int, int] = {}

    def first(part: str, tag: int, fits: Callable[[str, str], bool]) -> None:
        places = (place for place, (own, *said) in enumerate(texts) if own == part and place not in found)
        place = next((place for place in places if fits(*texts[place][1:])), None)
        if place is not None:
            found[place] = tag

    first("perception", LANGUAGE, lambda q, a: all(name in a for name in classes))
    first("perception", ACCURACY, lambda q, a: "what is the moving status of object" in q)
    first("prediction", MATCH, lambda q, a: all(tag.lower() in a for tag in frame.objects))
    first("prediction", ACCURACY, lambda q, a: bool(re.match(r"(yes|no)\b", a)))
    first("planning", JUDGED, lambda q, a: "what actions could the ego vehicle take" in q)
    first("planning", JUDGED, lambda q, a: "lead to a collision" in q)
    first("planning", JUDGED, lambda q, a: "safe actions" in q)
    found |= {place: ACCURACY for place, (part, *_) in enumerate(texts) if part == "behavior"}
    order = {part: number for number, part in enumerate(PARTS)}
    return sorted(found.items(), key=lambda pair: order[texts[pair[0]][0]])


def as_choices(row: Mapping[str, Any], seed: str) -> Mapping[str, Any]:
    """A question of CHOICES as multiple choice: three other answers are drawn by ``seed``, the answer is a letter.

    Other questions, and answers that are none of the choices, stay as they are. Source: ``convert_data.py``.
    """
    asked = row["Q"].lower()
    known = next((answers for part, answers in CHOICES.items() if part in asked), ())
    if row["A"] not in known:
        return row
    rng = random.Random(seed)
    drawn = [*rng.sample([answer for answer in known if answer != row["A"]], len(LETTERS) - 1), row["A"]]
    rng.shuffle(drawn)
    options = " ".join(f"{letter}. {answer}" for letter, answer in zip(LETTERS, drawn, strict=True))
    question = f"{row['Q']} Please select the correct answer from the following options: {options}"
    return {**row, "Q": question, "A": LETTERS[drawn.index(row["A"])]}


def prompt(question: str) -> str:
    """A question as it is asked: coordinates of the stitched image, the paper's sentence where it is about objects."""
    about_objects = "<c" in question or re.search(r"\bobjects?\b", question, re.IGNORECASE)
    text = to_stitched(question)
    return f"{text} {OBJECTS}" if about_objects else text


_LISTED = re.compile(r"(\([^()\d]+, )(\d+\.?\d*), (\d+\.?\d*), (\d+\.?\d*), (\d+\.?\d*)\)")
"""A traffic element with its box, such as ``(traffic light, green, 674.86, 0.14, 723.33, 109.18)``."""


def answer_text(question: str, answer: str) -> str:
    """An answer with coordinates of the stitched image, also those of boxes listed for the front view."""

    def box(match: re.Match[str]) -> str:
        x1, y1, x2, y2 = (float(side) for side in match.groups()[1:])
        corners = (*in_stitched("CAM_FRONT", x1, y1), *in_stitched("CAM_FRONT", x2, y2))
        return match[1] + ", ".join(str(round(side)) for side in corners) + ")"

    text = to_stitched(answer)
    return _LISTED.sub(box, text) if "traffic elements in the front view" in question else text


def read_prompts(root: str | Path, benchmark: str) -> tuple[Path, list[dict[str, Any]]] | None:
    """InternVL's rows: id, image, text and question; ``None`` without its file; DataError lists bad rows."""
    path = find(root, benchmark, with_val(PROMPTS))
    if path is None:
        return None
    faults = Faults(path)
    found = []
    for number, row in enumerate(read_rows(path, ("id", "image", "conversations", "question_old")), 1):
        turns = row["conversations"]
        first = turns[0] if isinstance(turns, list) and turns else None
        text = first.get("value") if isinstance(first, dict) else None
        if not isinstance(text, str):
            faults.add(number, "conversations do not begin with a question")
            continue
        asked = {"id": str(row["id"]), "image": str(row["image"]), "text": text.strip()}
        found.append({**asked, "question": str(row["question_old"])})
    faults.check()
    return path, found


def example_frame(*asked: tuple[str, str, Any, int | None], **more: Any) -> dict[str, Any]:
    """A frame of the official file, for the examples: (part, question, answer, tag) of each question."""
    empty = dict.fromkeys(("C", "con_up", "con_down", "cluster", "layer"))
    qa: dict[str, list[Any]] = {part: [] for part in PARTS}
    for part, question, answer, tag in asked:
        row = {"Q": question, "A": answer, **empty}
        qa.setdefault(part, []).append(row if tag is None else {**row, "tag": [tag]})
    views = {camera: f"../nuscenes/samples/{camera}/a__{camera}__1.jpg" for camera in CAMERAS}
    return {"QA": qa, "image_paths": views, **more}


def example_views() -> dict[str, ExampleImage]:
    """The images that such frames name."""
    return {
        f"nuscenes/samples/{camera}/a__{camera}__1.jpg": ExampleImage(width=160, height=90, seed=seed)
        for seed, camera in enumerate(CAMERAS)
    }
