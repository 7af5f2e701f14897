"""Clips in BDD-X's shape: the file both BDD-X benchmarks and the driving domains read, and how its questions are asked.

A folder holds ``clips.jsonl`` and the pictures it names. One row is one clip::

    {"id": "test-000003", "split": "test", "frames": ["frames/test/000003-1.png", ...],
     "description": "The car is slowing down.", "justification": "because the light ahead is red.",
     "speed": 9.31, "turning_angle": -0.42, ...}

``frames`` are in order of time, paths relative to the folder. ``speed`` (m/s) and ``turning_angle`` (degrees, the
change of heading) belong to the moment one frame interval after the last frame; either may be null where it was not
recorded. Further fields are allowed and ignored here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.records import Item, Part, Prediction

CLIPS = "clips.jsonl"
SPLITS = ("train", "validation", "test")

QUESTIONS: Mapping[str, str] = {
    "description": "What is the car doing?",
    "justification": "Why is the car doing this?",
    "speed": "Predict the next speed of the car in m/s. Answer with one number.",
    "turning_angle": "Predict the next turning angle of the car in degrees. Answer with one number.",
}
"""The wording in which the benchmarks ask (the paper's four questions)."""


def read_clips(root: Path, split: str) -> Iterator[dict[str, Any]]:
    """Rows of one split in file order, their frames checked to exist.

    Raises:
        ValueError: unknown split, no file, or a row that is unreadable, incomplete or names a missing frame.
    """
    if split not in SPLITS:
        raise ValueError(f'there is no split "{split}"; use one of {", ".join(SPLITS)}')
    path = Path(root) / CLIPS
    if not path.is_file():
        raise ValueError(f"{path} is missing; give the folder that holds {CLIPS}")
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                row = _checked(line, f"{path}:{number}")
                if row["id"] in seen:
                    raise ValueError(f'{path}:{number}: the id "{row["id"]}" is used twice')
                seen.add(row["id"])
                if row["split"] == split:
                    _check_frames(row, path, number)
                    yield row


def _checked(line: str, where: str) -> dict[str, Any]:
    """One row with every needed field of the right kind."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no valid JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object")
    for field in ("id", "split", "description", "justification"):
        if not isinstance(row.get(field), str):
            raise ValueError(f'{where}: field "{field}" must be a text')
    frames = row.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, str) for frame in frames):
        raise ValueError(f'{where}: field "frames" must be a list of picture paths')
    for field in ("speed", "turning_angle"):
        value = row.get(field)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise ValueError(f'{where}: field "{field}" must be a number or null')
    return row


def _check_frames(row: Mapping[str, Any], path: Path, number: int) -> None:
    for frame in row["frames"]:
        if not (path.parent / frame).is_file():
            raise ValueError(f"{path}:{number}: the frame {frame} is missing; build or copy the folder again")


def frame_parts(root: Path, row: Mapping[str, Any]) -> list[Part]:
    """Image parts named ``Frame-1``, ``Frame-2``, ..., the paper's way to show a video."""
    return [
        {"type": "image", "image": str(Path(root) / frame), "name": f"Frame-{number}"}
        for number, frame in enumerate(row["frames"], 1)
    ]


def number_text(value: float) -> str:
    """A control signal as the model is taught to write it: two decimals, never ``-0.00``."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def clip_items(root: Path, split: str, kinds: Sequence[str], *, max_new_tokens: int) -> Iterator[Item]:
    """One Item for each clip and each question of ``kinds``; ids are ``<clip>/<kind>``. Null signals are left out."""
    for row in read_clips(root, split):
        for kind in kinds:
            if row.get(kind) is None:
                continue
            yield Item(
                id=f"{row['id']}/{kind}",
                messages=[
                    {"role": "user", "content": [*frame_parts(root, row), {"type": "text", "text": QUESTIONS[kind]}]}
                ],
                truth={"clip": row["id"], "kind": kind, "answer": row[kind]},
                max_tiles=1,
                max_new_tokens=max_new_tokens,
            )


def answers_by_item(items: Iterable[Item], predictions: Iterable[Prediction]) -> dict[str, str | None]:
    """Item id -> answer text, None where no prediction names the item; of several the last counts."""
    texts = {prediction.item_id: prediction.text for prediction in predictions}
    return {item.id: texts.get(item.id) for item in items}
