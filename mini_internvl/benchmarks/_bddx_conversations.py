"""BDD-X as conversations over clips that are cut already: RAG-Driver's processed files, which go back to ADAPT's.

``conversation_bddx_train.json`` and ``conversation_bddx_eval.json`` are lists of rows: ``video``, and turns that ask
for the action, the reason and the next signals, answered ``Speed: 1.42 Course: -0.11`` (m/s; degrees to the right; in a
first version ``Curvature`` stood in the place of the course, so that the turning angle is null). The frames of a clip
are ``frames/CLIP/`` in order, or are taken from ``video`` (extra ``video``). Unusual:

* Signals were recorded at eight moments, the last of which is asked for: seven frames are shown, those before it.
* The training file holds some of the evaluation clips too. They are left out of the training.
* There is no validation file: one training video of twenty is held out.

Source: YuanJianhao508/RAG-Driver ``video_process/create_bddx_json.py``, ``evalcap/BDDX_gt``.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._video_frames import take_frames, video_length
from mini_internvl.data import Fault, Row
from mini_internvl.data.files import scan
from mini_internvl.data.workers import threaded_map
from mini_internvl.files import FileError

TRAINING = ("conversation_bddx_train.json",)
EVALUATION = ("conversation_bddx_eval.json", "conversation_bddx_eval_v1.json")
MOMENTS = 8  # at which signals were recorded
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
HELD_OUT = 20

_SIGNALS = re.compile(r"Speed: (?P<speed>-?\d+(?:\.\d+)?)(?: Course: (?P<course>-?\d+(?:\.\d+)?))?")


def find_conversations(root: str | Path) -> bool:
    """Whether one of the files is in ``root``."""
    return any((Path(root) / name).is_file() for name in (*TRAINING, *EVALUATION))


def conversation_clips(root: Path, split: str) -> Iterator[dict[str, Any] | Fault]:
    """The clips of a split in the file's order, as rows of ``clips.jsonl``; DataError: the split's file is missing."""
    tested = next((path for name in EVALUATION if (path := root / name).is_file()), root / EVALUATION[0])
    rows = scan(tested if split == "test" else root / TRAINING[0])
    if split != "test":
        known = {_video(row) for row in scan(tested) if isinstance(row, Row)} if tested.is_file() else set[str]()
        rows = (row for row in rows if isinstance(row, Fault) or _belongs(_video(row), split, known))
    return threaded_map(functools.partial(_clip, root), rows, min(8, os.cpu_count() or 1))


def _video(row: Row) -> str:
    return str(row.raw.get("video") or "")


def _belongs(video: str, split: str, tested: set[str]) -> bool:
    stem = Path(video).stem  # VIDEO_NUMBER: all clips of a video go together
    drawn = int(hashlib.sha256((stem.rpartition("_")[0] or stem).encode()).hexdigest()[:8], 16) % HELD_OUT
    return video not in tested and split == ("validation" if drawn == 0 else "train")


def _clip(root: Path, row: Row | Fault) -> dict[str, Any] | Fault:
    if isinstance(row, Fault):
        return row
    try:
        turns = row.raw.get("conversations")
        texts = [str(turn["value"]).strip() for turn in turns] if isinstance(turns, list) else []
        if len(texts) < 4 or not texts[1] or not texts[3]:
            raise FileError("the conversation has no action and reason: a question and an answer for each")
        found = _SIGNALS.search(texts[5]) if len(texts) > 5 else None
        return {
            "id": row.id,
            "frames": _frames(root, _video(row)),
            "description": texts[1],
            "justification": texts[3],
            "speed": float(found["speed"]) + 0.0 if found else None,
            "turning_angle": float(found["course"]) + 0.0 if found and found["course"] else None,
        }
    except (FileError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, FileError) else "a turn of the conversation has no value"
        return Fault(file=row.file, place=row.place, reason=reason)


def _frames(root: Path, video: str) -> list[str]:
    """The frames of a clip, as paths from ``root``; FileError: there are none, and no video to take them from."""
    if not video:
        raise FileError("the row names no video")
    folder = root / "frames" / Path(video).stem
    if not (found := _images(folder)):
        path = root / video
        if not path.is_file():
            raise FileError(f"neither {path} nor frames in {folder} are there")
        step = video_length(path) / MOMENTS
        draft = folder.with_name(f".{folder.name}.part")  # all frames or none, also after a kill
        shutil.rmtree(draft, ignore_errors=True)
        take_frames(path, draft, [step * number for number in range(MOMENTS - 1)])
        os.replace(draft, folder)
        found = _images(folder)
    return [f"frames/{folder.name}/{name}" for name in found]


def _images(folder: Path) -> list[str]:
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [name for name in names if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")]
