"""Clips in BDD-X's shape as training samples: four independent questions about the frames of each.

Order and wording are drawn from the clip's id. Shared by the driving domains; the rows are those of
``benchmarks/_bddx.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._bddx import QUESTIONS, clips, frame_parts, number_text
from mini_internvl.data import Fault
from mini_internvl.records import Message, Sample

_OTHERS: Mapping[str, Sequence[str]] = {
    "description": (
        "What is the current action of the car?",
        "Describe what the car does in these frames.",
        "How is the car being driven?",
    ),
    "justification": (
        "Why does the car behave like this?",
        "What is the reason for this action?",
        "Explain why the car acts this way.",
    ),
    "speed": (
        "What will the speed of the car be in the next frame, in m/s?",
        "Now predict the car's next speed in m/s:",
    ),
    "turning_angle": (
        "By how many degrees will the car turn until the next frame?",
        "Now predict the car's next turning angle in degrees:",
    ),
}
WORDINGS = {kind: (question, *_OTHERS[kind]) for kind, question in QUESTIONS.items()}
"""The ways a question is asked in training; the first of each is the benchmarks' own."""
SIGNALS = ("speed", "turning_angle")  # questions whose answers are numbers, and so the targets of heads


def clip_samples(raw: Path, split: str, source: str) -> Iterator[Sample | Fault]:
    """One sample a clip: its frames and the questions; its targets are the two signals."""
    for row in clips(raw, split):
        yield row if isinstance(row, Fault) else _sample(row, frame_parts(raw, row), source)


def _sample(row: Mapping[str, Any], frames: Sequence[Any], source: str) -> Sample:
    """The questions of one row, each alone with the frames as in the benchmark; null signals are not asked for."""
    rng = random.Random(row["id"])
    kinds = [kind for kind in QUESTIONS if row.get(kind) is not None]
    rng.shuffle(kinds)
    messages: list[Message] = []
    for turn, kind in enumerate(kinds):
        question = rng.choice(WORDINGS[kind])
        content = question if turn else [*frames, {"type": "text", "text": question}]
        answer = row[kind] if isinstance(row[kind], str) else number_text(row[kind])
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return Sample(
        id=row["id"],
        messages=messages,
        source=source,
        max_tiles=1,
        independent=True,
        targets={kind: row[kind] for kind in SIGNALS if row.get(kind) is not None},
    )
