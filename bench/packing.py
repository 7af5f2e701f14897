"""How full packs are, how evenly processes share them, and how fast they are made: fit, official buffer, padding.

Run ``python bench/packing.py [--json]``. Sizes are drawn after the published mix: 1 to 12 tiles and a thumbnail,
log-normal text lengths, some text alone and some with several images; driving: six views in 13 tiles; video: frames of
one tile each. No data set is read. ``full`` is the share of the binding budget that packs use; for padded micro batches
of 4, sorted within 128 samples, the share of places that hold a token. ``spread`` is the largest share of tiles that
one of 8 processes has in a step over the mean, with ``balance`` and with packs as they come.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from mini_internvl.data.packing import balance, fill, pack

SAMPLES, STEP, PROCESSES = 8192, 64, 8
LIMITS = {"max_tokens": 16384, "max_tiles": 48}


def general(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Text alone, one image in up to 13 tiles, several images."""
    kinds = random.random(count)
    tiles = random.choice([1, 3, 5, 7, 9, 10, 13], size=count, p=[0.12, 0.13, 0.2, 0.2, 0.1, 0.05, 0.2])
    tiles[kinds < 0.15] = 0
    tiles[kinds > 0.97] = random.integers(2, 24, (kinds > 0.97).sum())
    text = np.exp(random.normal(np.where(tiles == 0, 6.3, 5.2), 0.75)).astype(np.int64) + 60
    return np.minimum(text + 256 * tiles, 8192), tiles


def text(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Text alone."""
    tokens = np.exp(random.normal(6.3, 1.0, count)).astype(np.int64) + 60
    return np.minimum(tokens, 8192), np.zeros(count, dtype=np.int64)


def driving(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Six stitched views, mixed 4 to 1 with general data."""
    tokens, tiles = general(random, count)
    own = random.random(count) < 0.8
    tiles[own] = 13
    tokens[own] = 13 * 256 + random.integers(80, 300, own.sum())
    return tokens, tiles


def video(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames of one tile, mixed 1 to 1 with general data."""
    tokens, tiles = general(random, count)
    own = random.random(count) < 0.5
    tiles[own] = random.choice([8, 16, 24], size=own.sum())
    tokens[own] = np.minimum(tiles[own] * 256 + random.integers(100, 400, own.sum()), 8192)
    return tokens, tiles


def padded(tokens: np.ndarray) -> float:
    """Share of real tokens in micro batches of 4, sorted within 128 samples."""
    rows = np.sort(tokens[: len(tokens) // 128 * 128].reshape(-1, 128), axis=1).reshape(-1, 4)
    return float(rows.sum() / (rows.max(1) * 4).sum())


def spread(loads: np.ndarray, other: np.ndarray, *, balanced: bool) -> float:
    """The largest share of tiles (tokens, where there are none) over the mean, averaged over steps."""
    loads = loads if loads.any() else other
    found = []
    for step in range(len(loads) // STEP):
        own = loads[step * STEP : (step + 1) * STEP]
        tokens = other[step * STEP : (step + 1) * STEP]
        shares = balance(tokens, own, PROCESSES) if balanced else np.arange(STEP).reshape(PROCESSES, -1)
        sums = [own[share].sum() for share in shares]
        found.append(max(sums) / np.mean(sums))
    return float(np.mean(found))


def main() -> None:
    """Print one line for each mix and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for mix in (general, text, driving, video):
        tokens, tiles = mix(np.random.default_rng(0), SAMPLES)
        for way in ("fit", "buffer"):
            began = time.perf_counter()
            packs = pack(tokens, tiles, **LIMITS, method=way)
            seconds = time.perf_counter() - began
            starts = np.concatenate([[0], packs.ends[:-1]])
            sums = [np.add.reduceat(size[packs.members], starts) for size in (tiles, tokens)]
            rows.append(
                {
                    "mix": mix.__name__,
                    "way": way,
                    "packs": len(packs),
                    "full": round(fill(packs, tokens, tiles, **LIMITS), 4),
                    "samples_per_s": round(SAMPLES / seconds),
                    "spread": round(spread(*sums, balanced=True), 3),
                    "spread_unbalanced": round(spread(*sums, balanced=False), 3),
                }
            )
        rows.append({"mix": mix.__name__, "way": "padded", "full": round(padded(tokens), 4)})
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{SAMPLES:,} samples, packs of {LIMITS['max_tokens']:,} tokens and {LIMITS['max_tiles']} tiles")
    for row in rows:
        rest = f"{row['packs']:6,} packs  {row['samples_per_s']:8,} samples/s" if "packs" in row else ""
        rest += f"  spread {row['spread']:.3f} ({row['spread_unbalanced']:.3f} as they come)" if "packs" in row else ""
        print(f"{row['mix']:8} {row['way']:7} {row['full']:7.2%} full  {rest}")


if __name__ == "__main__":
    main()
