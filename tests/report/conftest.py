"""The folder of a finished adaptation as ``minivl adapt driving-sim`` leaves it, with made-up metrics."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

ACTIONS = (
    ("The car is slowing down.", "because the light ahead is red."),
    ("The car drives slowly and turns to the left.", "to follow the bend to the left."),
    ("The car accelerates and turns sharply to the right.", "because it is leaving the bend."),
    ("The car is stopped.", "since the light is red."),
    ("The car returns to the road from the left.", "because it has left the road."),
)
QUESTIONS = {
    "description": "What is the car doing?",
    "justification": "Why is the car doing this?",
    "speed": "Predict the next speed of the car in m/s. Answer with one number.",
    "turning_angle": "Predict the next turning angle of the car in degrees. Answer with one number.",
}
TEXT = {  # column -> base, adapted
    "description": {"CIDEr": (0.42, 412.37), "B4": (0.0, 61.82), "ROUGE": (11.93, 78.04)},
    "justification": {"CIDEr": (0.18, 287.55), "B4": (0.0, 49.3), "ROUGE": (8.46, 64.71)},
    "full": {"CIDEr": (0.31, 331.02), "B4": (0.0, 56.45), "ROUGE": (10.6, 70.99)},
}
SIGNALS = {
    "speed": {
        "RMSE": (41.27, 1.38),
        **{"A0.1": (0.67, 18.0), "A0.5": (2.0, 52.67), "A1.0": (4.67, 74.0), "A5.0": (18.0, 99.33)},
    },
    "turning_angle": {
        "RMSE": (112.8, 3.91),
        **{"A0.1": (2.0, 24.67), "A0.5": (5.33, 41.33), "A1.0": (8.0, 54.67), "A5.0": (22.67, 88.0)},
    },
}


def frame(kind: int, number: int) -> Image.Image:
    """An image of a road, 112 pixels square, so that a page looks like one."""
    image = Image.new("RGB", (112, 112), (104, 168, 94))
    pen = ImageDraw.Draw(image)
    bend = (kind % 3 - 1) * 40
    road = [(40, 112), (72, 112), (66 + bend, 0), (48 + bend, 0)]
    pen.polygon(road, fill=(105, 105, 108))
    pen.line([(56, 112), (57 + bend, 0)], fill=(240, 240, 230), width=2)
    pen.rectangle((51, 84 - 7 * number, 61, 102 - 7 * number), fill=(200, 30, 40))
    return image


def make_clips(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    """Test clips with four frames and four questions; the base is mostly wrong, the adapted model mostly right."""
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    rng = random.Random(5)
    clips = []
    for i in range(count):
        names = []
        for number in range(1, 5):
            names.append(f"frames/{i:06d}-{number}.png")
            frame(i, number).save(folder / names[-1])
        action, reason = ACTIONS[i % len(ACTIONS)]
        references = (action, reason, f"{rng.uniform(0, 15):.2f}", f"{rng.uniform(-8, 8):.2f}")
        other = ACTIONS[(i + 1) % len(ACTIONS)]
        questions = []
        for place, ((kind, question), reference) in enumerate(zip(QUESTIONS.items(), references, strict=True)):
            right = rng.random() < 0.75
            base_right = place > 1 and rng.random() < 0.2
            wrong = other[place] if place < 2 else f"{float(reference) + 2.4:.2f}"
            base = (
                reference
                if base_right
                else ("3 red circles", "7", "", "a blue square is left of the triangle")[place - i % 2]
            )
            questions.append(
                {
                    "kind": kind,
                    "question": question,
                    "truth": reference,
                    "base": base,
                    "adapted": reference if right else wrong,
                }
                | {"base_right": base_right, "adapted_right": right}
            )
        clips.append({"id": f"test-{i:06d}", "frames": names, "questions": questions})
    return clips


def make_metrics(steps: int = 450) -> list[dict[str, Any]]:
    """A training log of one stage, measured every quarter."""
    rng = random.Random(1)
    rows = []
    for step in range(1, steps + 1):
        fall = 0.32 + 3.1 * math.exp(-step / 55)
        row: dict[str, Any] = {"stage": "adapt", "step": step, "loss": fall * rng.uniform(0.78, 1.25)}
        rise = min(1.0, step / 14)
        row["lr"] = 4e-4 * rise * 0.5 * (1 + math.cos(math.pi * step / steps))
        row |= {"grad_norm": rng.uniform(0.8, 2.4), "tokens_per_s": rng.uniform(1200, 1500)}
        if step % (steps // 4) == 0:
            share = 1 - math.exp(-2.5 * step / steps)
            row |= {"held_out_loss": fall + 0.11, "bddx_text description/CIDEr": 440 * share}
            row |= {"bddx_signals speed/A1.0": 82 * share, "score": 261 * share}
        rows.append(row)
    return rows


def make_result(folder: Path) -> dict[str, Any]:
    """The content of adapt.json."""
    benchmarks: dict[str, Any] = {}
    columns = []
    groups = {"bddx_text": TEXT, "bddx_signals": SIGNALS}
    worst = {"worst_error": {"speed": 50.0, "turning_angle": 180.0}}
    notes: dict[str, dict[str, Any]] = {
        "bddx_text": {"base": {"empty": 31, "clips": 150}, "adapted": {"empty": 0, "clips": 150}},
        "bddx_signals": {
            "base": {"unreadable": {"speed": 97, "turning_angle": 88}, **worst},
            "adapted": {"unreadable": {"speed": 0, "turning_angle": 0}, **worst},
        },
    }
    for benchmark, kinds in groups.items():
        sides: dict[str, Any] = {}
        for place, side in enumerate(("base", "adapted")):
            values = {
                f"{kind}/{label}": pair[place] for kind, labels in kinds.items() for label, pair in labels.items()
            }
            sides[side] = {"items": 300, "values": values, "notes": notes[benchmark][side]}
        benchmarks[benchmark] = sides
        for kind, labels in kinds.items():
            group = kind.replace("_", " ").capitalize()
            for label in labels:
                columns.append(
                    {"benchmark": benchmark, "key": f"{kind}/{label}", "label": label, "group": group}
                    | {"higher_is_better": label != "RMSE"}
                )
    source = {"kind": "synth", "path": "", "weight": 0.27, "seed": 7, "split": "train"}
    recipe = {
        "name": "adapt-driving-sim",
        "stages": [
            {
                "name": "adapt",
                "data": [
                    {
                        "kind": "domain",
                        "name": "driving-sim",
                        "path": "runs/driving-sim/data",
                        "weight": 1.0,
                        "seed": 0,
                    },
                    *({**source, "name": name} for name in ("shapes", "words", "charts", "text")),
                ],
                **{"steps": 450, "lr": 4e-4, "warmup_ratio": 0.03, "weight_decay": 0.01, "batch_size": 16},
            }
        ],
        **{"model": "nano", "precision": "bf16", "seed": 0, "held_out_samples": 32},
    }
    return {
        "domain": "driving-sim",
        "title": "Driving (simulated BDD-X)",
        "command": "minivl adapt driving-sim --output runs/driving-sim",
        "created": "2026-11-23 19:20:11",
        "model": {"name": "nano", "path": "mini_internvl/nano", "sha256": "4f" * 32, "parameters": 8_103_424},
        "adapted_sha256": "a7" * 32,
        "versions": {"mini_internvl": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.2"},
        "machine": {"threads": 2, "processor": "x86_64"},
        "seconds": {"data": 94.2, "score base": 141.0, "adapt": 402.7, "score adapted": 118.4, "total": 756.3},
        "recipe": recipe,
        "data": {"train": 600, "validation": 60, "test": 150, "sha256": "c3" * 32},
        "benchmarks": benchmarks,
        "columns": columns,
        "general": {
            "base": {"shapes": 81.0, "words": 70.0, "charts": 62.0},
            "adapted": {"shapes": 79.0, "words": 69.0, "charts": 60.5},
            "items": {"shapes": 100, "words": 100, "charts": 100},
            "mean": {"base": 71.0, "adapted": 69.5},
        },
        "clips": make_clips(folder),
    }


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with frames and the content of its adapt.json; read both, change neither."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, make_result(folder)


@pytest.fixture
def result(tmp_path: Path, finished: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    """The content of adapt.json, to be changed freely; its frames are found from ``tmp_path``."""
    folder, content = finished
    (tmp_path / "frames").symlink_to(folder / "frames")
    return copy.deepcopy(content)


@pytest.fixture(scope="session")
def metrics() -> list[dict[str, Any]]:
    """The training log; not to be changed."""
    return make_metrics()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """``write(result, metrics)`` puts both into ``tmp_path`` as a run folder and returns it."""

    def write_run(result: Any, metrics: list[dict[str, Any]] | None = None) -> Path:
        (tmp_path / "adapt.json").write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
        if metrics is not None:
            (tmp_path / "train").mkdir(exist_ok=True)
            lines = "".join(json.dumps(row) + "\n" for row in metrics)
            (tmp_path / "train" / "metrics.jsonl").write_text(lines, encoding="utf-8")
        return tmp_path

    return write_run
