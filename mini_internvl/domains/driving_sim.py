"""Driving clips from a physics simulator, in BDD-X's question set: what the car does, why, next speed, next angle.

``build`` drives Gymnasium's CarRacing-v3 (extra ``sim``) and writes images and ``clips.jsonl``; ``convert`` reads
that folder, or any other in the same shape (``mini_internvl/benchmarks/_bddx.py``). Unusual:

* Speed is in world units per second. Box2D works in metres and the simulated car is about 5 m long, hence "m/s".
* The turning angle is the change of heading from the last frame to one interval after it, in degrees, left positive
  (ISO 8855's counter-clockwise sense). The next speed is the speed at that same moment.
* Splits use track seeds from ranges that never meet, one track a clip; the same seed gives the same files, also after
  an interrupted build. Images show speed, front wheel angle and turning rate as bars (``_car_view.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._bddx import CLIPS, example_frames
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample
from mini_internvl.domains._building import build_rows, check_same
from mini_internvl.domains._clips import clip_samples
from mini_internvl.files import new_file
from mini_internvl.records import Message, Sample

SOURCE = "driving-sim"
TITLE = "Driving (simulated BDD-X)"
FORMAT = 1  # raised when drivers, images or wordings change, so that an old folder is not continued
SEEDS: Mapping[str, int] = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}
"""First track seed of each split."""
SEEDS_PER_BUILD = 1_000_000  # track seeds that one ``seed`` of ``build`` may use in a split
MAX_SEED = 1_000

SPLITS = tuple(SEEDS)
RECIPE = AdaptRecipe()  # a clip's frames are one tile each whatever the limit: its sample says so
BENCHMARKS = {name: DomainBenchmark(test="test", validation="validation") for name in ("bddx_text", "bddx_signals")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a clip: its frames and four independent questions, order and wording drawn from the clip's id.

    Its targets are the two signals.
    """
    return clip_samples(raw, split, SOURCE)


def build(
    folder: str | Path,
    *,
    train: int = 600,
    validation: int = 60,
    test: int = 150,
    frames: int = 4,
    interval: float = 0.4,
    size: int = 112,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Drives the clips and writes the raw folder; an interrupted build goes on where it stopped.

    ``clips.jsonl``, whose path is returned, appears when everything is there; until then finished clips wait in
    ``clips.part.jsonl``. A finished folder is returned as it is, and extended when more clips are asked for.

    A clip has ``frames`` images, ``size`` pixels square, ``interval`` seconds apart (a multiple of 0.02). Each seed,
    0..999, gives other clips. ``progress`` is called with (clips done, clips in all) after each. ValueError: a setting
    is out of range, the folder was built with other settings, or gymnasium is missing.
    """
    counts = {"train": train, "validation": validation, "test": test}
    settings = {"format": FORMAT, "frames": frames, "interval": interval, "size": size, "seed": seed}
    _check_settings(counts, settings)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_same(folder / "build.json", settings)
    wanted = {_clip_id(split, index): (split, index) for split, count in counts.items() for index in range(count)}
    return build_rows(
        folder / CLIPS,
        list(wanted),
        lambda name: _build_clip(folder, *wanted[name], settings),
        lambda row: row["frames"],
        lambda done: progress(done, len(wanted)),
    )


def _check_settings(counts: Mapping[str, int], settings: Mapping[str, Any]) -> None:
    ranges = {"frames": (1, 40, ""), "size": (56, 1024, " pixels"), "seed": (0, MAX_SEED - 1, "")}
    for name, value in {**counts, **settings}.items():
        low, high, unit = ranges.get(name, (0, SEEDS_PER_BUILD, ""))
        if name != "interval" and not low <= value <= high:
            raise ValueError(f"{name} is {value}; it must be between {low} and {high}{unit}")
    steps = settings["interval"] / 0.02
    if steps < 0.5 or abs(steps - round(steps)) > 1e-6:
        raise ValueError(f"interval is {settings['interval']}; it must be a multiple of 0.02 seconds")


def _build_clip(folder: Path, split: str, index: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Drives one clip and writes its frames; its row."""
    from mini_internvl.domains._car_racing import simulate
    from mini_internvl.domains._driving_words import captions

    track_seed = SEEDS[split] + settings["seed"] * SEEDS_PER_BUILD + index
    interval = settings["interval"]
    rollout = simulate(track_seed, frames=settings["frames"], interval=interval, size=settings["size"])
    names = [f"frames/{split}/{index:06d}-{number}.png" for number in range(1, settings["frames"] + 1)]
    for name, frame in zip(names, rollout.frames, strict=True):
        with new_file(folder / name, flush=False) as draft:
            frame.save(draft, "PNG")

    *seen, after = rollout.states
    description, justification = captions(seen, track_seed)
    return {
        "id": _clip_id(split, index),
        "split": split,
        "track_seed": track_seed,
        "frames": names,
        "interval": interval,
        "description": description,
        "justification": justification,
        "speed": round(after.speed, 2) + 0.0,
        "turning_angle": round(after.heading - seen[-1].heading, 2) + 0.0,
        "situation": rollout.clip.situation,
        "style": rollout.clip.style,
        "states": [dataclasses.asdict(state) for state in rollout.states],
    }


def _clip_id(split: str, index: int) -> str:
    return f"{split}-{index:06d}"


_CLIP = {
    "id": "train-000007",
    "split": "train",
    "frames": ["frames/train/000007-1.png", "frames/train/000007-2.png"],
    "description": "The car is slowing down.",
    "justification": "because the light ahead is red.",
    "speed": 9.314,
    "turning_angle": -0.4,
}
_SHOWN = [
    {"type": "image", "image": "frames/train/000007-1.png", "name": "Frame-1"},
    {"type": "image", "image": "frames/train/000007-2.png", "name": "Frame-2"},
    {"type": "text", "text": "Explain why the car acts this way."},
]
_TURNS: Sequence[Message] = [
    {"role": "user", "content": _SHOWN},
    {"role": "assistant", "content": "because the light ahead is red."},
    {"role": "user", "content": "What will the speed of the car be in the next frame, in m/s?"},
    {"role": "assistant", "content": "9.31"},
    {"role": "user", "content": "How is the car being driven?"},
    {"role": "assistant", "content": "The car is slowing down."},
    {"role": "user", "content": "Now predict the car's next turning angle in degrees:"},
    {"role": "assistant", "content": "-0.40"},
]
_TARGETS = {"speed": 9.314, "turning_angle": -0.4}
_SAMPLE = Sample(id="train-000007", messages=_TURNS, source=SOURCE, max_tiles=1, independent=True, targets=_TARGETS)
EXAMPLE = DomainExample(
    files={CLIPS: [_CLIP, {**_CLIP, "id": "train-000008", "speed": "fast"}]},
    images=example_frames(_CLIP),
    samples={"train": [_SAMPLE], "validation": []},
    faults={"train": 1, "validation": 0},
)
