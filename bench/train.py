"""Training beside transformers, on one machine in one run: packed here, padded there at its best batch size.

Run ``python bench/train.py [--quick] [--json]``. Two models with random weights, all of them training: nano's shape,
and four layers each of the 1B's encoder and language model with the real widths and vocabulary, and tiles of 224 pixels
(64 tokens). Sizes of samples are those of two mixes of ``packing.py``; so that two cores can do it, samples have a
quarter of the tiles and a sixteenth of the tokens of text. Both ways take the same samples, weights and AdamW in
float32 (``peers.py``), and no time is spent on reading data. Before they are timed their losses must agree within 1e-4.
The padded loop takes samples as they come, in batches of several sizes, and once sorted by length within a step. Each
measurement is a process of its own, all ways in turn, and of ``--rounds`` the fastest counts. ``compiled`` is our stage
with ``compile: true``; ``peak_gb`` is ``ru_maxrss``, with all libraries that are loaded.

``cache`` trains on pictures of 12 tiles and a thumbnail with a frozen encoder, by ``minivl train`` from start to end:
epochs with ``cache: true``, after a run that fills it, beside epochs without. Its model has the widths and layers of
the second above, and nano's tokenizer and vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from peers import NANO, Task, apart, check, measure, official, write_models
from PIL import Image

MODELS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {  # shape; samples of a step and budgets of a pack
    "nano": ({"name": "nano"}, {"samples": 32, "pack_tokens": 1024, "pack_tiles": 24}),
    "1B-4": ({"name": "1B", "layers": 4, "image_size": 224}, {"samples": 4, "pack_tokens": 512, "pack_tiles": 8}),
}
MIXES = ("general", "long")
LARGEST_DIFFERENCE = 1e-4  # between losses
PICTURES, BATCH, EPOCHS = 4, 2, 3  # of the runs with a frozen encoder
TRAINED = (("projector",), ("projector", "llm"))


def compare(folder: Path, model: str, mix: str, quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Rows of one model on one mix; SystemExit where the losses differ."""
    base = Task(
        folder=str(folder),
        mix=mix,
        steps=1 if quick else 2,
        warm_samples=1,
        fewer_tiles=4,
        shorter_texts=16,
        **MODELS[model][1],
    )
    found = apart(check, base)
    if found.get("difference", 1.0) > LARGEST_DIFFERENCE:
        raise SystemExit(f"{model}, {mix}: both ways do not compute the same loss: {found}")
    compiled = replace(base, compile=True, warm_samples=0)
    ways = [base, compiled, *(replace(base, rows=rows) for rows in ((1, 4) if quick else (1, 2, 4, 8)))]
    ways.append(replace(base, rows=4, sort=True))
    turns = [[apart(measure, task) for task in ways] for _ in range(rounds)]
    rows = []
    for task, *measured in zip(ways, *turns, strict=True):
        way = "packed" if not task.rows else f"padded, {task.rows}" + (" sorted" if task.sort else "")
        way += ", compiled" if task.compile else ""
        fastest = max(measured, key=lambda one: one.get("supervised_per_s", 0.0))
        rows.append({"model": model, "mix": mix, "way": way, **fastest, "loss_differs": found["difference"]})
    padded = [row for row, task in zip(rows, ways, strict=True) if task.rows and "failed" not in row]
    best = max(padded, key=lambda row: row["supervised_per_s"])
    for row in rows:
        row["best"] = row is best
        if "failed" not in row:
            row["times"] = round(row["supervised_per_s"] / best["supervised_per_s"], 2)
            row["memory_times"] = round(row["peak_gb"] / best["peak_gb"], 2)
    return rows


def write_pictures(folder: Path) -> Path:
    """Photo-sized pictures with a short question and answer each."""
    rows = []
    for number in range(PICTURES):
        Image.effect_noise((1600, 1200), 60 + number).convert("RGB").save(folder / f"{number}.jpg")
        turns = [("human", "<image>\nWhat is shown?"), ("gpt", "Noise, as on a screen without a signal.")]
        turns_row = [{"from": who, "value": text} for who, text in turns]
        rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns_row})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_base(folder: Path) -> Path:
    """A checkpoint of the small 1B with nano's tokenizer."""
    raw = official(**MODELS["1B-4"][0])
    nano = json.loads(NANO.read_text())
    raw["llm_config"]["vocab_size"] = nano["llm_config"]["vocab_size"]
    raw |= {"img_context_token_id": nano["img_context_token_id"], "template": nano["template"]}
    write_models(raw, folder)
    for file in NANO.parent.iterdir():
        if file.suffix in (".json", ".txt") and file.name != "config.json":
            shutil.copy(file, folder / "official")
    return folder / "official"


def epoch_seconds(folder: Path, base: Path, rows: Path, train: tuple[str, ...], cache: bool) -> float:
    """Seconds of an epoch after the first, from the run's own log."""
    stage = {
        "name": "frozen", "train": list(train), "steps": EPOCHS * PICTURES // BATCH, "batch_size": BATCH,
        "micro_batch": BATCH, "cache": cache, "data": [{"kind": "rows", "path": str(rows)}],
    }  # fmt: skip
    recipe = {"name": "cache", "model": str(base), "device": "cpu", "precision": "fp32", "stages": [stage]}
    path, output = folder / "recipe.yaml", folder / f"run-{cache}-{len(train)}"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "mini_internvl", "train", str(path), "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"MINIVL_CACHE": str(folder / "cache")})
    steps = [json.loads(line) for line in (output / "speed.jsonl").read_text().splitlines()]
    shutil.rmtree(output)
    return sum(step["seconds"] for step in steps[PICTURES // BATCH :]) / (EPOCHS - 1)


def compare_cached() -> list[dict[str, Any]]:
    """Rows of a frozen encoder, by what trains."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, pictures = write_base(folder / "base"), write_pictures(folder)
        for train in TRAINED:
            epoch_seconds(folder, base, pictures, train, True)  # workers read ahead: a run of its own fills the cache
            seconds = {cache: epoch_seconds(folder, base, pictures, train, cache) for cache in (False, True)}
            rows.append({
                "train": ", ".join(train), "epoch_s": round(seconds[False], 2), "cached_s": round(seconds[True], 2),
                "times": round(seconds[False] / seconds[True], 2),
            })  # fmt: skip
    return rows


COLUMNS = ("supervised_per_s", "step_s", "peak_gb", "fill", "times")


def tell(rows: list[dict[str, Any]]) -> None:
    """One table."""
    print(f"{'model':6} {'mix':8} {'way':18}" + "".join(f"{name:>17}" for name in COLUMNS))
    for row in rows:
        cells = "".join(f"{row[name]:>17}" for name in COLUMNS) if "failed" not in row else f"  {row['failed']}"
        print(
            f"{row['model']:6} {row['mix']:8} {row['way']:18}{cells}{'  best padded' if row['best'] else ''}",
            flush=True,
        )


def main() -> None:
    """Measure every way and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one step of each way and fewer batch sizes")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--mixes", nargs="*", default=list(MIXES), choices=MIXES)
    parser.add_argument("--no-cache", action="store_true", help="leave the frozen encoder out")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    if not given.json:
        print(f"float32, {torch.get_num_threads()} threads")
    for model in given.models:
        with tempfile.TemporaryDirectory() as folder:
            write_models(official(**MODELS[model][0]), Path(folder))
            for mix in given.mixes[: 1 if given.quick else None]:
                found = compare(Path(folder), model, mix, given.quick, given.rounds)
                rows += found
                if not given.json:
                    tell(found)
    cached = [] if given.no_cache else compare_cached()
    if given.json:
        print(json.dumps({"threads": torch.get_num_threads(), "rows": rows, "cache": cached}))
        return
    for row in cached:
        seconds = f"an epoch {row['epoch_s']} s, cached {row['cached_s']} s, {row['times']}x"
        print(f"frozen encoder, {row['train']} trains: {seconds}")


if __name__ == "__main__":
    main()
