"""BDD-X: what a car does and why, its next speed and turning angle, from the official annotations, frames and records.

Reads the files that ``benchmarks/_bddx_official.py`` describes, conversations over cut clips
(``_bddx_conversations.py``), or a folder with ``clips.jsonl`` (``_bddx.py``), which driving-sim reads too. The four
questions are those of driving-sim, in the same wordings; the paper's own and its number format are not public. Unusual:

* The splits are the official lists. A clip's signals are asked where they were recorded; its text always is.
* The turning angle has a compass' sign, as in ADAPT: to the right positive. driving-sim's has the other one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._bddx_official import PARTS, TABLE
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._clips import clip_samples
from mini_internvl.records import Message, Sample

SOURCE = "bddx"
TITLE = "Driving video (BDD-X)"
SPLITS = ("train", "validation", "test")
RECIPE = AdaptRecipe()  # the paper's 1 : 1; a clip's frames are one tile each whatever the limit: its sample says so
BENCHMARKS = {name: DomainBenchmark(test="test", validation="validation") for name in ("bddx_text", "bddx_signals")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a clip: its frames and up to four independent questions, order and wording drawn from the clip's id.

    Its targets are the signals that are known.
    """
    return clip_samples(raw, split, SOURCE)


_HEADER = ["Input.Video", *(f"Answer.{n}{part}" for n in (1, 2, 3) for part in PARTS)]
_TABLE: Sequence[Sequence[str]] = (
    _HEADER,
    ["https://host/a1.mov", "0", "1", "The car slows.", "The light is red.", "5", "3", "It stops.", "It is red."],
    ["https://host/b2.mov", "0", "1", '"The car turns, slowly."', "because the road bends."],
    ["https://host/c3.mov", "0", "1", "The car stops.", "for a cyclist."],
    ["https://host/d4.mov", "0", "1", "The car drives.", "", "1", "", "It turns.", "to park.", "one", "2", "x", "y"],
    ["https://host/e5.mov", "0", "1", "The car is parked.", "at the kerb.", "20", "22", "It moves.", "to leave."],
    ["https://host/f6.mov", "0", "1", "The car waits.", "for the light."],
    [],
)
_FRAMES = [f"frames/{video}/000{time}.jpg" for video in ("a1", "b2", "e5", "f6") for time in ("250", "750")]
_RECORDS = [
    {"timestamp": 1000, "speed": 6.0, "course": 350.0, "accuracy": 5.0},
    {"timestamp": 2000, "speed": 4.5, "course": 10.0, "accuracy": 5.0},
]
_UNKNOWN = [{"timestamp": 1000, "speed": None, "course": -1.0}, {"timestamp": 2000, "speed": 0.0, "course": -1.0}]


def _sample(name: str, *turns: str, **targets: float) -> Sample:
    """A sample of the example: its texts, and its frames before the first."""
    frames = [path for path in _FRAMES if path.split("/")[1] == name.split("_")[0]]
    parts: list[Any] = [
        {"type": "image", "image": path, "name": f"Frame-{number}"} for number, path in enumerate(frames, 1)
    ]
    asked: list[Any] = [[*parts, {"type": "text", "text": turns[0]}], *turns[1:]]
    messages: list[Message] = [
        {"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(asked)
    ]
    return Sample(id=name, messages=messages, source=SOURCE, max_tiles=1, independent=True, targets=targets)


EXAMPLE = DomainExample(
    files={
        f"BDD-X-Dataset/{TABLE}": "".join(
            ",".join([*cells, *[""] * (len(_HEADER) - len(cells))]) + "\n" for cells in _TABLE
        ),
        "BDD-X-Dataset/train.txt": "0_a1\n3_d4\n4_e5\n5_f6\n",
        "BDD-X-Dataset/val.txt": "1_b2\n",
        "BDD-X-Dataset/test.txt": "",
        "info/a1.json": {"startTime": 1000, "endTime": 41000, "locations": _RECORDS},
        "info/100k/train/e5.json": {"startTime": 1000, "locations": _UNKNOWN},
        "info/f6.json": {"startTime": 1000, "gps": []},
    },
    images={path: ExampleImage(width=56, height=56, seed=seed) for seed, path in enumerate(_FRAMES)},
    samples={
        "train": [
            _sample(
                "a1_1",
                *("What is the reason for this action?", "The light is red."),
                *("By how many degrees will the car turn until the next frame?", "2.50"),
                *("Now predict the car's next speed in m/s:", "4.50"),
                *("What is the current action of the car?", "The car slows."),
                speed=4.5,
                turning_angle=2.5,
            ),
            _sample(
                "e5_1",
                *("Now predict the car's next speed in m/s:", "0.00"),
                *("What is the car doing?", "The car is parked."),
                *("Explain why the car acts this way.", "at the kerb."),
                speed=0.0,
            ),
        ],
        "validation": [
            _sample(
                "b2_1",
                *("Explain why the car acts this way.", "because the road bends."),
                *("What is the car doing?", "The car turns, slowly."),
            )
        ],
        "test": [],
    },
    faults={"train": 7, "validation": 0, "test": 0},
)
