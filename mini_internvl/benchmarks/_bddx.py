"""Clips in BDD-X's shape: the file both BDD-X benchmarks and the driving domains read, and how its questions are asked.

A folder holds ``clips.jsonl`` and the images it names. One row is one clip::

    {"id": "test-000003", "split": "test", "frames": ["frames/test/000003-1.png", ...],
     "description": "The car is slowing down.", "justification": "because the light ahead is red.",
     "speed": 9.31, "turning_angle": -0.42, ...}

``frames`` are in order of time, paths relative to the folder. ``speed`` (m/s) and ``turning_angle`` (degrees, the
change of heading) belong to the moment one frame interval after the last frame; either may be null where it was not
recorded. Further fields are allowed and ignored here. Without ``clips.jsonl`` the same rows are made of BDD-X's
official files (``_bddx_official.py``) or of conversations over clips (``_bddx_conversations.py``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._bddx_conversations import TRAINING, conversation_clips, find_conversations
from mini_internvl.benchmarks._bddx_official import TABLE, find_table, official_clips
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._vqa import ask
from mini_internvl.data import DataError, Fault
from mini_internvl.data.files import scan
from mini_internvl.records import Item, Part

CLIPS = "clips.jsonl"
FIELDS = ("id", "split", "frames", "description", "justification")
SPLITS = ("test", "validation", "train")
PROTOCOLS = {"paper": "The scorers and thresholds that the paper's tables name; the prompts are this project's own."}

QUESTIONS: Mapping[str, str] = {
    "description": "What is the car doing?",
    "justification": "Why is the car doing this?",
    "speed": "Predict the next speed of the car in m/s. Answer with one number.",
    "turning_angle": "Predict the next turning angle of the car in degrees. Answer with one number.",
}
"""The wording in which the benchmarks ask (the paper's four questions)."""


def clips(root: str | Path, split: str, *, odd: bool = True) -> Iterator[dict[str, Any] | Fault]:
    """Rows of one split in file order, and a fault for each that is incomplete, wrong or lacks a frame.

    A row that does not say its split counts to every one. ``odd`` tells as faults what BDD-X's own scripts pass over
    in its table too, such as a segment without a reason.

    Raises:
        ValueError: unknown split.
        DataError: no file.
    """
    chosen("split", split, SPLITS)
    path = Path(root) / CLIPS
    if not path.is_file():
        if table := find_table(root):
            yield from official_clips(Path(root), table, split, odd=odd)
        elif find_conversations(root):
            yield from conversation_clips(Path(root), split)
        else:
            known = f"{CLIPS}, {TABLE} or {TRAINING[0]}"
            raise DataError(f"{path} is missing; give the folder that holds {known}")
        return
    seen: set[str] = set()
    folder = os.fspath(path.parent)
    for row in scan(path):
        if isinstance(row, Fault):
            yield row
            continue
        wrong = list(_wrong(row.raw)) or [f'the id "{row.id}" is used twice'] * (row.id in seen)
        seen.add(row.id)
        if isinstance(row.raw.get("split"), str) and row.raw["split"] != split:
            continue
        if not wrong:
            gone = [frame for frame in row.raw["frames"] if not os.path.isfile(os.path.join(folder, frame))]
            wrong = [f"the frame {frame} is missing" for frame in gone]
        yield Fault(file=path, place=row.place, reason="; ".join(wrong)) if wrong else dict(row.raw)


def read_clips(root: str | Path, split: str) -> list[dict[str, Any]]:
    """The same rows, without those of BDD-X's table that its own scripts pass over.

    Raises:
        ValueError: unknown split.
        DataError: no file, or rows of the split are unusable (listed).
    """
    rows = list(clips(root, split, odd=False))
    faults = [row for row in rows if isinstance(row, Fault)]
    if faults:
        raise DataError.of(faults, "build or copy the folder again")
    return [row for row in rows if not isinstance(row, Fault)]


def _wrong(row: Mapping[str, Any]) -> Iterator[str]:
    """What is missing or not of the right kind."""
    missing = [field for field in FIELDS if field not in row]
    if missing:
        yield f"no {', '.join(missing)}"
        return
    for field in ("id", "split", "description", "justification"):
        if not isinstance(row[field], str):
            yield f'field "{field}" must be a text'
    frames = row["frames"]
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, str) for frame in frames):
        yield 'field "frames" must be a list of image paths'
    for field in ("speed", "turning_angle"):
        value = row.get(field)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            yield f'field "{field}" must be a number or null'


def frame_parts(root: Path, row: Mapping[str, Any]) -> list[Part]:
    """Image parts named ``Frame-1``, ``Frame-2``, ..., the paper's way to show a video."""
    return [
        {"type": "image", "image": os.path.join(root, frame), "name": f"Frame-{number}"}
        for number, frame in enumerate(row["frames"], 1)
    ]


def number_text(value: float) -> str:
    """A control signal as the model is taught to write it: two decimals, never ``-0.00``."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def clip_items(
    root: str | Path, benchmark: str, split: str, kinds: Sequence[str], *, max_new_tokens: int
) -> Iterator[Item]:
    """One Item for each clip and each question of ``kinds``; ids are ``<clip>/<kind>``. Null signals are left out.

    The clips lie in ``root``, ``root/benchmark`` or ``root/bddx``.
    """
    places = [Path(root) / name for name in ("", benchmark, "bddx")]
    known = (place for place in places if (place / CLIPS).is_file() or find_table(place) or find_conversations(place))
    folder = next(known, places[0])
    for row in read_clips(folder, split):
        for kind in kinds:
            if row.get(kind) is None:
                continue
            reference = {"clip": row["id"], "kind": kind, "answer": row[kind]}
            images = frame_parts(folder, row)
            yield ask(
                f"{row['id']}/{kind}", images, QUESTIONS[kind], reference, max_tiles=1, max_new_tokens=max_new_tokens
            )


def example(*rows: Mapping[str, Any], good: Sequence[str], bad: Sequence[str]) -> WorkedExample:
    """A folder of clips with answers."""
    return WorkedExample(files={CLIPS: rows}, images=example_frames(*rows), good=good, bad=bad)


def example_clip(number: int, description: str, justification: str, **signals: float | None) -> dict[str, Any]:
    """A row with two frames, for the examples."""
    frames = [f"frames/test/{number:06d}-{frame}.png" for frame in (1, 2)]
    row = {"id": f"test-{number:06d}", "split": "test", "frames": frames, "states": []}
    return {**row, "description": description, "justification": justification, **signals}


def example_frames(*rows: Mapping[str, Any]) -> dict[str, ExampleImage]:
    """The frames that rows name."""
    return {
        frame: ExampleImage(width=56, height=56, seed=number)
        for number, row in enumerate(rows)
        for frame in row["frames"]
    }
