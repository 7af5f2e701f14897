"""A simulated highway from above: how many lanes, which lane, how many vehicles ahead, what the car does.

``build`` drives highway-env (extra ``sim``) and writes images and ``SPLIT.jsonl``, training rows that ``convert`` and
the benchmark ``own`` read. Unusual:

* Answers come from the simulator's state. What the images leave open is drawn anew: a car between two lanes, a vehicle
  at the edge of the image or beside the car, a collision.
* Left is that of a driver, so up in the image, where all cars drive to the right.
* Splits use seeds from ranges that never meet; the same seed gives the same files, also after an interrupted build.
* highway-env draws nothing where SDL_VIDEODRIVER is "dummy", so it is "offscreen" while ``build`` draws.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import Fault
from mini_internvl.data.rows import read_rows, to_row
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._building import build_rows, check_same
from mini_internvl.files import new_file
from mini_internvl.records import Message, Sample

SOURCE = "highway-sim"
TITLE = "Highway from above (simulated)"
FORMAT = 1  # raised when images or wordings change, so that an old folder is not continued
SEEDS: Mapping[str, int] = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}
"""First seed of each split."""
SAMPLES_PER_BUILD, ATTEMPTS, MAX_SEED = 50_000, 20, 999  # samples of a split, seeds for each, seeds of a build
SPLITS = tuple(SEEDS)
RECIPE = AdaptRecipe()
BENCHMARKS = {"own": DomainBenchmark(test="test", validation="validation")}

WIDTH, HEIGHT, SCALING, EGO_PLACE = (
    448,
    224,
    6.0,
    0.3,
)  # pixels, pixels a metre, the car's place as a share of the width
FRAMES, STEPS = 3, 4  # of a sample, and simulated steps of 0.2 s between two
LANE = 4.0  # metres
ACTIONS = {"left": 0, "keep": 1, "right": 2}  # numbers of highway-env

WORDINGS = {
    "lanes": ("How many lanes does the road have?", "Count the lanes of the road. Answer with one number."),
    "lane": ("In the last frame, which lane from the left is the green car in? Answer with one number.",),
    "ahead": (
        "How many vehicles are ahead of the green car in the last frame?",
        "Count the vehicles in front of the green car in the last frame. Answer with one number.",
    ),
    "action": ("What does the green car do?", "How does the green car move in these frames?"),
}
DEEDS = {
    "left": "It changes to the lane on its left.",
    "keep": "It keeps its lane.",
    "right": "It changes to the lane on its right.",
}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """The rows of a split: one sample three frames with four independent questions."""
    return read_rows(raw / f"{chosen('split', split, SPLITS)}.jsonl")


@dataclass(frozen=True, kw_only=True)
class Drive:
    """What a seed gives: images and the true answers at the last of them."""

    frames: tuple[Any, ...]  # PIL images
    lanes: int
    lane: int  # from the left, from 1
    ahead: int
    action: str  # a key of DEEDS


def build(
    folder: str | Path,
    *,
    train: int = 400,
    validation: int = 40,
    test: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Drive and write the raw folder, which is returned; an interrupted build goes on, a finished one is extended.

    Each seed, 0..999, gives other samples. ``progress`` is called with (samples done, samples in all). ValueError: a
    setting is out of range, the folder was built with other settings, or highway-env is missing.
    """
    counts = {"train": train, "validation": validation, "test": test}
    for name, value in {**counts, "seed": seed}.items():
        most = MAX_SEED if name == "seed" else SAMPLES_PER_BUILD
        if not 0 <= value <= most:
            raise ValueError(f"{name} is {value}; it must be between 0 and {most}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_same(folder / "build.json", {"format": FORMAT, "seed": seed})
    before, total = 0, sum(counts.values())
    for split, count in counts.items():
        build_rows(
            folder / f"{split}.jsonl",
            [f"{split}-{index:06d}" for index in range(count)],
            lambda name: _build(folder, name, seed),
            lambda row: [part["image"] for part in row["messages"][0]["content"] if part["type"] == "image"],
            functools.partial(_told, progress, before, total),
        )
        before += count
    return folder


def _told(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    """Tell of samples of a split, with those of the splits before it."""
    progress(before + done, total)


def _build(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """The row of one sample, its images written."""
    split, _, number = name.partition("-")
    first = SEEDS[split] + (seed * SAMPLES_PER_BUILD + int(number)) * ATTEMPTS
    drive = next((found for attempt in range(ATTEMPTS) if (found := simulate(first + attempt))), None)
    if drive is None:
        raise ValueError(f"no clear scene in {ATTEMPTS} attempts for {name}; build with another seed")
    names = [f"frames/{split}/{number}-{place}.png" for place in range(1, FRAMES + 1)]
    for path, frame in zip(names, drive.frames, strict=True):
        with new_file(folder / path, flush=False) as draft:
            frame.save(draft, "PNG")
    return to_row(_sample(name, names, drive))


def _sample(name: str, names: list[str], drive: Drive) -> Sample:
    rng = random.Random(name)
    answers = {"lanes": drive.lanes, "lane": drive.lane, "ahead": drive.ahead, "action": DEEDS[drive.action]}
    messages: list[Message] = []
    for kind, answer in rng.sample(list(answers.items()), len(answers)):
        question = rng.choice(WORDINGS[kind])
        frames = [{"type": "image", "image": path, "name": f"Frame-{n}"} for n, path in enumerate(names, 1)]
        content = question if messages else [*frames, {"type": "text", "text": question}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": str(answer)}]
    return Sample(id=name, messages=messages, source=SOURCE, max_tiles=1, independent=True)


def simulate(seed: int) -> Drive | None:
    """Drive a highway; ``None`` where the images would not tell the answers. ValueError: highway-env is missing."""
    from PIL import Image

    rng = random.Random(seed)
    lanes, wanted = rng.randint(2, 5), rng.choice(["left", "keep", "right"])
    with _environment(lanes, rng.randint(4, 16), rng.uniform(0.5, 1.6)) as env:
        env.reset(seed=seed)
        for _ in range(rng.randint(1, 8)):
            env.step(ACTIONS["keep"])
        car, begin = env.vehicle, env.vehicle.position[1]
        frames = [Image.fromarray(env.render())]
        for step in range(STEPS * (FRAMES - 1)):
            env.step(ACTIONS["keep" if step else wanted])
            if (step + 1) % STEPS == 0:
                frames.append(Image.fromarray(env.render()))
        x, y = car.position
        away = [float(vehicle.position[0] - x) for vehicle in env.road.vehicles if vehicle is not car]
        crashed = any(vehicle.crashed for vehicle in env.road.vehicles)
    edge = WIDTH / SCALING * (1 - EGO_PLACE)  # metres from the car to the image's right edge
    moved = (y - begin) / LANE  # lanes, to the right
    action = "keep" if abs(moved) < 0.1 else "right" if moved > 0 else "left"
    between = abs(y / LANE - round(y / LANE)) > 0.25 or (action != "keep" and abs(moved) < 0.75)
    unclear = any(abs(distance) < 3 or abs(distance - edge) < 3 for distance in away)
    if crashed or between or unclear:
        return None
    ahead = sum(0 < distance < edge for distance in away)
    return Drive(frames=tuple(frames), lanes=lanes, lane=round(y / LANE) + 1, ahead=ahead, action=action)


@contextmanager
def _environment(lanes: int, vehicles: int, density: float) -> Iterator[Any]:
    """A highway that draws into memory."""
    try:
        from highway_env.envs.highway_env import HighwayEnv
    except ModuleNotFoundError as error:
        raise ValueError(f"highway-sim needs highway-env ({error.name}): pip install 'mini-internvl[sim]'") from None
    config: dict[str, Any] = {"lanes_count": lanes, "vehicles_count": vehicles, "vehicles_density": density}
    config |= {"screen_width": WIDTH, "screen_height": HEIGHT, "scaling": SCALING, "policy_frequency": 5}
    config |= {"centering_position": [EGO_PLACE, 0.5], "offscreen_rendering": True, "simulation_frequency": 15}
    config |= {"duration": 1000, "observation": {"type": "AttributesObservation", "attributes": []}}
    driver = os.environ.get("SDL_VIDEODRIVER")
    os.environ["SDL_VIDEODRIVER"] = "offscreen"
    env = HighwayEnv(config=config, render_mode="rgb_array")
    try:
        yield env
    finally:
        env.close()
        os.environ.pop("SDL_VIDEODRIVER")
        if driver is not None:
            os.environ["SDL_VIDEODRIVER"] = driver


_NAMES = [f"frames/train/000003-{number}.png" for number in range(1, FRAMES + 1)]
_ROW = _sample("train-000003", _NAMES, Drive(frames=(), lanes=3, lane=2, ahead=1, action="left"))
_FRAMES = [{"type": "image", "image": path, "name": f"Frame-{number}"} for number, path in enumerate(_NAMES, 1)]
_TURNS: Any = [
    {"role": "user", "content": [*_FRAMES, {"type": "text", "text": "How many lanes does the road have?"}]},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "What does the green car do?"},
    {"role": "assistant", "content": "It changes to the lane on its left."},
    {"role": "user", "content": WORDINGS["lane"][0]},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": WORDINGS["ahead"][1]},
    {"role": "assistant", "content": "1"},
]
EXAMPLE = DomainExample(
    files={
        "train.jsonl": [to_row(_ROW), {**to_row(_ROW), "messages": 5}],
        "validation.jsonl": [to_row(_ROW)],
        "test.jsonl": [to_row(_ROW)],
    },
    images={path: ExampleImage(width=56, height=28, seed=seed) for seed, path in enumerate(_NAMES)},
    samples={
        split: [
            Sample(
                id="train-000003",
                messages=_TURNS,
                source=SOURCE,
                max_tiles=1,
                independent=True,
            )
        ]
        for split in ("train", "validation")
    },
    faults={"train": 1, "validation": 0},
)
