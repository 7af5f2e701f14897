"""DriveLM-nuScenes v1.1: questions about six views of a street, from the official training file and nuScenes' images.

Reads ``v1_1_train_nus.json`` (scene -> key frame -> ``QA``, ``image_paths``, ``key_object_infos``), one scene at a
time, and the images that it names; finished stitched images, as InternVL publishes them, are taken instead. The six
views of a frame become one image of 2688x896, kept in ``stitch/``; coordinates become 0 to 1000 of it. Unusual:

* A frame's questions stand in samples of QUESTIONS each, all independent: the loss is that of one sample a question, as
  InternVL trains it, and an image is encoded once for all of them.
* The two questions that the challenge asks as multiple choice are trained as it asks them (the file has them open).
* Key objects with a ``2d_bbox`` give further questions in the paper's unified form, ``Detect <ref>...</ref>``.
* Splits are by scene. Where one view is missing the whole frame is a fault; else each question is one of its own.

Source: DriveLM ``docs/data_prep_nus.md``, ``challenge/``; InternVL ``tools/images_stitching.py``; paper section 3.3.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._drivelm import (
    OBJECTS,
    TRAINING,
    Frame,
    answer_text,
    as_choices,
    example_frame,
    example_views,
    frames,
    prompt,
    split_of,
)
from mini_internvl.benchmarks._drivelm_views import Views
from mini_internvl.benchmarks._files import chosen, locate
from mini_internvl.data import DataError, Fault
from mini_internvl.data.workers import threaded_map
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample
from mini_internvl.domains._questions import expected
from mini_internvl.inputs import boxes
from mini_internvl.metrics.drivelm import CAMERA_SIZE, CAMERAS, in_stitched, odd_tags
from mini_internvl.records import Sample

SOURCE = "drivelm"
TITLE = "Driving with six views (DriveLM)"
SPLITS = ("train", "validation")
RECIPE = AdaptRecipe(ratio=0.25)  # the paper's best for DriveLM
NANO_RECIPE = replace(RECIPE.for_nano(), max_tiles=12)  # as the benchmark asks: the six views take 12 tiles
BENCHMARKS = {"drivelm": DomainBenchmark(test="test", validation="validation")}
QUESTIONS = 16  # of one sample: about 5,000 tokens with its image
Question = tuple[str, str]  # (question, answer)


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Samples of the split's scenes; stitched images that are missing are made on the way, several at a time."""
    chosen("split", split, SPLITS)
    path = locate(raw, "drivelm", TRAINING)
    views = Views(path)

    def image(frame: Frame | Fault) -> tuple[Frame | Fault, str]:
        if isinstance(frame, Fault):
            return frame, ""
        try:
            return frame, os.fspath(views.whole(f"{frame.name}.jpg", frame.views))
        except DataError as error:
            return Fault(file=path, place=f"row {frame.name}", reason=str(error)), ""

    wanted = frames(path, lambda scene: split_of(scene) == split)
    for frame, stitched in threaded_map(image, wanted, min(8, os.cpu_count() or 1)):
        if isinstance(frame, Fault):
            yield frame
        else:
            yield from _samples(path, frame, stitched)


def _samples(path: Path, frame: Frame, image: str) -> Iterator[Sample | Fault]:
    """The questions of one frame, QUESTIONS a sample, ids ``scene_frame_number`` of the first; and its faults."""
    asked = list[Question]()
    for place, found in _questions(frame):
        if isinstance(found, str):
            yield Fault(file=path, place=f"row {frame.name}_{place}", reason=found)
        else:
            asked.append(found)
    for first in range(0, len(asked), QUESTIONS):
        yield expected(SOURCE, f"{frame.name}_{first}", image, *asked[first : first + QUESTIONS])


def _questions(frame: Frame) -> Iterator[tuple[int | str, Question | str]]:
    """(place in the frame, question and answer or what is wrong)."""
    for number, (_, row) in enumerate(frame.questions):
        fault = _fault(row)
        if fault:
            yield number, fault
            continue
        row = as_choices(row, f"{frame.name}_{number}")
        yield number, (prompt(row["Q"]), answer_text(row["Q"], row["A"]).strip())
    found: dict[str, list[tuple[int, int, int, int]]] = {}
    for tag, known in frame.objects.items():
        box = known.get("2d_bbox") if isinstance(known, Mapping) else None
        if box is None:
            continue
        phrase = str(known.get("Visual_description") or "").strip().rstrip(".")
        try:
            placed = _box(tag, box)
        except ValueError as error:
            yield tag.strip("<>").split(",")[0], str(error)
        else:
            found.setdefault(phrase, []).append(placed)
    for phrase, every in found.items():
        if phrase:
            yield phrase, (f"Detect <ref>{phrase}</ref>", boxes.render(phrase, every))


def _fault(row: Any) -> str:
    """What is wrong with a question of the file; empty if nothing is."""
    for key, what in (("Q", "question"), ("A", "answer")):
        text = row.get(key) if isinstance(row, Mapping) else None
        if not isinstance(text, str):
            return f"no {key}: a question has the texts Q and A"
        if not text.strip():
            return f"the {what} is empty"
    return "; ".join(odd_tags(f"{row['Q']} {row['A']}"))


def _box(tag: str, box: Any) -> tuple[int, int, int, int]:
    """The box of a key object, in its camera's pixels, as integers 0..1000 of the stitched image.

    ValueError: the tag's camera or point, or the box, is none.
    """
    if wrong := odd_tags(tag):
        raise ValueError("; ".join(wrong))
    name, camera, *_ = [*tag.strip("<>").split(","), ""]
    if camera not in CAMERAS:
        raise ValueError(f'the key object "{tag}" has no tag such as <c1,CAM_FRONT,800.0,450.0>')
    numbers = [float(side) for side in box if isinstance(side, int | float)] if isinstance(box, list) else []
    if len(numbers) != 4 or numbers[0] > numbers[2] or numbers[1] > numbers[3]:
        raise ValueError(f"the 2d_bbox of {name} is {box}; it must be x1, y1, x2, y2 with x1 <= x2 and y1 <= y2")
    x1, y1, x2, y2 = (max(0.0, min(side, CAMERA_SIZE[place % 2])) for place, side in enumerate(numbers))
    if x1 == x2 or y1 == y2:
        raise ValueError(f"the 2d_bbox of {name}, {box}, is outside of its camera's image")
    corners = (*in_stitched(camera, x1, y1), *in_stitched(camera, x2, y2))
    return boxes.to_thousand(corners, 1000, 1000)


_BUS, _LIGHT = "<c1,CAM_FRONT,800.0,450.0>", "<c2,CAM_FRONT,900.0,100.0>"
_IMPORTANT = "What are the important objects in the current scene?"
_STATUS = f"What is the moving status of object {_BUS}?"
_BEHAVIOUR = "Predict the behavior of the ego vehicle."
_STRAIGHT = "The ego vehicle is going straight. The ego vehicle is driving slowly."
_LIST = "Identify all the traffic elements in the front view, each with its bounding box."
_GOOD = example_frame(
    ("perception", _IMPORTANT, f"There is a red bus, {_BUS}, and a green light, {_LIGHT}.", None),
    ("perception", _STATUS, "Going ahead.", None),
    ("perception", _LIST, "There is one: [(traffic light, green, 800.0, 90.0, 960.0, 180.0)].", None),
    ("prediction", "Is the light green?", "Yes.", None),
    ("behavior", _BEHAVIOUR, _STRAIGHT, None),
    key_object_infos={
        _BUS: {"Category": "Vehicle", "Visual_description": "Red bus.", "2d_bbox": [640.0, 270.0, 960.0, 630.0]},
        _LIGHT: {"Category": "Traffic element", "Visual_description": "Green light."},
    },
)
_WHERE = ("Where does the ego vehicle go?", "Straight on.")
_ODD = example_frame(
    ("perception", "What is <c1,CAM_SIDE,5.0,5.0>?", "A tram.", None),
    ("perception", "Which object is near?", "<c1,CAM_BACK,1700.0,450.0>", None),
    ("prediction", "Will it stop?", " ", None),
    ("planning", "Is it safe to turn?", None, None),
    ("weather", "Does it rain?", "No.", None),
    ("behavior", *_WHERE, None),
    key_object_infos={_BUS: {"Visual_description": "Red bus.", "2d_bbox": [960.0, 270.0, 640.0, 630.0]}},
)
_NO_VIEW = {**_GOOD, "image_paths": {**_GOOD["image_paths"], "CAM_BACK": "../nuscenes/samples/CAM_BACK/gone.jpg"}}


_SELECT = "Please select the correct answer from the following options:"
_ASKED = (
    (
        f"{_IMPORTANT} {OBJECTS}",
        "There is a red bus, <c1,CAM_FRONT,[500, 250]>, and a green light, <c2,CAM_FRONT,[521, 56]>.",
    ),
    (
        "What is the moving status of object <c1,CAM_FRONT,[500, 250]>? "
        f"{_SELECT} A. Stopped. B. Reverse parking. C. Back up. D. Going ahead. {OBJECTS}",
        "D",
    ),
    (_LIST, "There is one: [(traffic light, green, 500, 50, 533, 100)]."),
    ("Is the light green?", "Yes."),
    (
        f"{_BEHAVIOUR} {_SELECT} A. The ego vehicle is steering to the left. The ego vehicle is driving slowly. "
        f"B. {_STRAIGHT} C. The ego vehicle is steering to the left. The ego vehicle is driving very fast. "
        "D. The ego vehicle is slightly steering to the right. The ego vehicle is driving fast.",
        "B",
    ),
    ("Detect <ref>Red bus</ref>", "<ref>Red bus</ref><box>[[467, 150, 533, 350]]</box>"),
)
_FRAMES = {"frame1": _GOOD, "frame2": _ODD, "frame3": _NO_VIEW, "frame4": {"QA": None}}
EXAMPLE = DomainExample(
    files={
        "v1_1_train_nus.json": {
            "scene1": {"scene_description": "The ego vehicle goes straight.", "key_frames": _FRAMES},
            "scene2": {"scene_description": "No frames."},
            "scene8": {"key_frames": {"frame1": _ODD}},
            "scene144": {"key_frames": {"frame1": _GOOD}},
        }
    },
    images=example_views(),
    samples={
        "train": [
            expected(SOURCE, "scene1_frame1_0", "stitch/scene1_frame1.jpg", *_ASKED),
            expected(SOURCE, "scene1_frame2_0", "stitch/scene1_frame2.jpg", _WHERE),
        ],
        "validation": [expected(SOURCE, "scene8_frame1_0", "stitch/scene8_frame1.jpg", _WHERE)],
    },
    faults={"train": 9, "validation": 6},
)
