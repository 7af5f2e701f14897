"""How full packs are, how evenly processes share them, and how fast they are made: fit, official buffer, padding.

Run ``python bench/packing.py [--json]``. No data set is read; sizes are drawn:

- general: the sets of InternVL's fine-tuning mix. The rows of each set are those of the meta file of the official
  scripts, but the parts of its 665k mix, and picture sizes and text lengths (log-normal) of all sets, are assumed.
  Tiles follow from picture sizes: at most 12 and a thumbnail.
- text: chats and long texts; long: general with three in ten long texts; multi: two in five samples of 2 to 6 images.
- driving: four in five samples of six stitched views (13 tiles); video: half of the samples of 8 to 40 frames.
- nano: samples drawn for the nano model's recipe, measured. At 64 tiles both budgets nearly bind, which is hard to
  pack; at 96 one does.

``full`` is the share of the binding budget that packs use; ``best`` is a bound by counting that no packing exceeds:
three samples of 13 tiles fill 39 of 48 tiles, so that driving stays below 0.85 with 48, not with 52. Fit packs windows
of 8,192 samples, the buffer all samples in a row. Of padded micro batches of 4 rows, sorted within a step of 128,
``full`` is the share of real tokens, another measure than that of packs. ``spread`` is the largest share of a step's
tiles (before the slash) and tokens over the mean, averaged over steps of 64 packs, with ``balance`` and with packs
dealt as they come.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mini_internvl.data.packing import Packs, balance, fill, pack
from mini_internvl.inputs.tiles import TileConfig, count_tiles

WINDOW = 8192  # samples that are packed together
SAMPLES, STEP, LONGEST = 4 * WINDOW, 64, 8192
NANO = Path(__file__).parent.parent / "recipes" / "nano.yaml"

PHOTOS = {
    **{(640, 480): 36, (640, 427): 24, (480, 640): 14, (427, 640): 7},
    **{(640, 640): 6, (500, 375): 5, (375, 500): 5, (640, 360): 3},
}
PAGES = {(1700, 2200): 7, (1000, 1500): 2, (2200, 1700): 1}
CHARTS = {(850, 600): 6, (800, 557): 2, (310, 1000): 2}
DIAGRAMS = {(400, 400): 4, (600, 400): 3, (500, 300): 2, (350, 500): 1}
PLOTS, COVERS, SCENES = {(448, 448): 1}, {(350, 500): 6, (330, 500): 4}, {(1024, 768): 7, (768, 1024): 3}

GENERAL = (  # thousands of rows, pictures, median of text tokens, its spread (of the logarithm)
    (102, PHOTOS, 260, 0.25),  # ShareGPT4V
    (364, PHOTOS, 180, 0.7),  # LLaVA-1.5's 665k: COCO
    (72, PHOTOS, 260, 0.5),  # GQA
    (86, PHOTOS, 230, 0.4),  # Visual Genome
    (80, COVERS, 150, 0.4),  # OCR-VQA
    (22, SCENES, 100, 0.4),  # TextVQA
    (40, {}, 900, 0.9),  # ShareGPT
    (158, PHOTOS, 170, 0.6),  # LLaVA-Instruct-ZH
    (200, PLOTS, 320, 0.3),  # DVQA
    (18, CHARTS, 75, 0.4),  # ChartQA
    (12, DIAGRAMS, 55, 0.15),  # AI2D
    (10, PAGES, 250, 0.4),  # DocVQA
    (72, DIAGRAMS, 130, 0.5),  # GeoQA+
    (30, PAGES, 400, 0.5),  # SynthDoG
)

Sizes = tuple[np.ndarray, np.ndarray]


def length(random: np.random.Generator, median: float, spread: float, count: int) -> np.ndarray:
    """Tokens of texts, 40 of the template counted."""
    return 40 + np.exp(random.normal(np.log(median), spread, count)).astype(np.int64)


def general(random: np.random.Generator, count: int) -> Sizes:
    rows = np.array([row[0] for row in GENERAL])
    kinds = random.choice(len(GENERAL), size=count, p=rows / rows.sum())
    tokens, tiles = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    for kind, (_, pictures, median, spread) in enumerate(GENERAL):
        own = np.flatnonzero(kinds == kind)
        if pictures:
            shares, cut = np.array(list(pictures.values())), [count_tiles(*size, TileConfig()) for size in pictures]
            tiles[own] = random.choice(cut, size=len(own), p=shares / shares.sum())
        tokens[own] = length(random, median, spread, len(own))
    return np.minimum(tokens + 256 * tiles, LONGEST), tiles


def text(random: np.random.Generator, count: int) -> Sizes:
    short = random.random(count) < 0.6
    tokens = np.where(short, length(random, 300, 0.6, count), length(random, 1500, 0.9, count))
    return np.minimum(tokens, LONGEST), np.zeros(count, dtype=np.int64)


def some(share: float, own: Callable[[np.random.Generator, int], Sizes]) -> Callable[[np.random.Generator, int], Sizes]:
    """A share of samples of one's own in the general mix."""

    def mixed(random: np.random.Generator, count: int) -> Sizes:
        chosen = random.random(count) < share
        tokens, tiles = (
            np.where(chosen, a, b) for a, b in zip(own(random, count), general(random, count), strict=True)
        )
        return np.minimum(tokens, LONGEST), tiles

    return mixed


def long(random: np.random.Generator, count: int) -> Sizes:
    return length(random, 2500, 0.8, count), np.zeros(count, dtype=np.int64)


def multi(random: np.random.Generator, count: int) -> Sizes:
    images = random.choice([1, 3, 5, 7], size=(count, 6)) * (np.arange(6) < random.integers(2, 7, (count, 1)))
    tiles = np.minimum(images.sum(1), 24)
    return 256 * tiles + length(random, 250, 0.6, count), tiles


def views(random: np.random.Generator, count: int) -> Sizes:
    return 256 * 13 + length(random, 110, 0.5, count), np.full(count, 13)


def frames(random: np.random.Generator, count: int) -> Sizes:
    tiles = random.integers(8, 41, count)
    return 264 * tiles + length(random, 120, 0.5, count), tiles


def nano(random: np.random.Generator, count: int) -> Sizes:
    """Measured on 400 samples, which are drawn from again."""
    from mini_internvl import recipes
    from mini_internvl.train.data import MixedDataset
    from mini_internvl.train.run import open_initial, sample_processor

    recipe = recipes.load(NANO)
    stage = replace(recipe.stages[-1], steps=1, batch_size=400)
    stage = replace(stage, data=tuple(s for s in stage.data if s.name in ("words", "shapes", "charts", "text")))
    dataset = MixedDataset(stage, sample_processor(open_initial(replace(recipe, device="cpu")), stage), seed=0)
    examples = [dataset[number] for number in range(len(dataset))]
    sizes = np.array([(len(example.input_ids), len(example.tiles)) for example in examples])
    tokens, tiles = sizes[random.integers(0, len(sizes), count)].T
    return tokens, tiles


MIXES: dict[str, tuple[Callable[[np.random.Generator, int], Sizes], int, int]] = {  # sizes, max tokens, max tiles
    "general": (general, 16384, 48),
    "text": (text, 16384, 48),
    "long": (some(0.3, long), 16384, 48),
    "multi": (some(0.4, multi), 16384, 48),
    "video": (some(0.5, frames), 16384, 48),
    "driving": (some(0.8, views), 16384, 48),
    "driving, 52 tiles": (some(0.8, views), 16384, 52),
    "nano": (nano, 4096, 64),
    "nano, 96 tiles": (nano, 4096, 96),
}


def fewest(sizes: np.ndarray, budget: int) -> float:
    """A number of packs that no packing can go below, from one budget alone.

    A sample over 1 / (k + 1) of the budget takes 1 / k of a pack, or its own share (dual feasible functions).
    """
    parts = np.arange(1, 50)[:, None] + 1
    sums = np.where(parts * sizes % budget == 0, sizes / budget, parts * sizes // budget / (parts - 1)).sum(1)
    return float(max(sizes.sum() / budget, sums.max()))


def windows(tokens: np.ndarray, tiles: np.ndarray, limits: dict[str, int]) -> Packs:
    """As a run packs: window by window."""
    made = [
        pack(tokens[start : start + WINDOW], tiles[start : start + WINDOW], **limits, seed=start)
        for start in range(0, len(tokens), WINDOW)
    ]
    members = [packs.members + place * WINDOW for place, packs in enumerate(made)]
    before = np.cumsum([0, *map(len, members)])
    ends = [packs.ends + first for packs, first in zip(made, before[:-1], strict=True)]
    return Packs(members=np.concatenate(members), ends=np.concatenate(ends))


def padded(tokens: np.ndarray) -> float:
    """Share of real tokens in micro batches of 4, sorted within a step of 128."""
    rows = np.sort(tokens[: len(tokens) // 128 * 128].reshape(-1, 128), axis=1).reshape(-1, 4)
    return float(rows.sum() / (rows.max(1) * 4).sum())


def spreads(packs: Packs, tokens: np.ndarray, tiles: np.ndarray, processes: int) -> Iterator[str]:
    """Tiles / tokens of the process that has most over the mean: with balance, and as they come."""
    loads = packs.sums(tokens), packs.sums(tiles)
    steps = [slice(start, start + STEP) for start in range(0, len(packs) - STEP + 1, STEP)]
    dealt = np.arange(STEP).reshape(-1, processes).T
    for balanced in (True, False):
        found = []
        for step in steps:
            own = np.stack([load[step] for load in loads])
            sums = np.array([own[:, share].sum(1) for share in (balance(*own, processes) if balanced else dealt)])
            found.append(sums.max(0) / np.maximum(sums.mean(0), 1))
        by_tokens, by_tiles = np.mean(found, axis=0)
        yield f"{by_tiles:.3f}/{by_tokens:.3f}" if tiles.any() else f"-/{by_tokens:.3f}"


def measure(mix: str) -> Iterator[dict[str, Any]]:
    """One row for each way to make batches of a mix."""
    make, max_tokens, max_tiles = MIXES[mix]
    limits = {"max_tokens": max_tokens, "max_tiles": max_tiles}
    tokens, tiles = make(np.random.default_rng(0), SAMPLES)
    demand = tokens.sum() / max_tokens, tiles.sum() / max_tiles
    best = max(demand) / max(fewest(tokens, max_tokens), fewest(tiles, max_tiles))
    common = {"mix": mix, "binds": "tokens" if demand[0] > demand[1] else "tiles", "best": round(float(best), 4)}
    for way in ("fit", "buffer"):
        began = time.perf_counter()
        packs = windows(tokens, tiles, limits) if way == "fit" else pack(tokens, tiles, **limits, method=way)
        seconds = time.perf_counter() - began
        full = fill(packs, tokens, tiles, **limits)
        row = {"way": way, "full": round(full, 4), "packs": len(packs), "samples/s": round(SAMPLES / seconds)}
        for processes in (4, 8):
            row[f"spread {processes}"], row[f"{processes} as they come"] = spreads(packs, tokens, tiles, processes)
        yield common | row
    yield common | {"way": "padded", "binds": "tokens", "full": round(padded(tokens), 4), "best": ""}


def main() -> None:
    """Print one line for each mix and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [row for mix in MIXES for row in measure(mix)]
    if arguments.json:
        print(json.dumps(rows))
        return
    names = list(rows[0])
    print(f"{SAMPLES:,} samples of each mix")
    for row in [dict(zip(names, names, strict=True)), *rows]:
        cells = [str(row.get(name, "")).rjust(max(len(name), 11)) for name in names[1:]]
        print(f"{row['mix']:18}" + " ".join(cells))


if __name__ == "__main__":
    main()
