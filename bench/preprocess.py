"""Images per second from a 3000x2000 JPEG to normalised tiles: plain Pillow against the default and the fast path.

Run ``python bench/preprocess.py [--json]``. The three are timed in turn, round after round, so that a drift of the
machine's speed touches all alike; medians and the median of the rounds' ratios are printed.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time

import numpy as np
import torch
from PIL import Image, ImageDraw

from mini_internvl.inputs.tiles import MEAN, STD, TileConfig, choose_grid, pixel_values


def image() -> bytes:
    """A JPEG of 3000 x 2000 pixels, quality 90, with gradients, noise and lines."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:2000, 0:3000]
    base = np.stack([x * 255 / 3000, y * 255 / 2000, (x + y) * 255 / 5000], -1)
    image = Image.fromarray(np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(400):
        pen.line(
            [tuple(map(int, rng.integers(0, 2000, 2))) for _ in range(2)], fill=tuple(map(int, rng.integers(0, 256, 3)))
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def plain(data: bytes, size: int = 448, max_tiles: int = 12) -> torch.Tensor:
    """The original's order of work: resize, crop, and normalise tile by tile."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    columns, rows = choose_grid(image.width, image.height, max_tiles=max_tiles, image_size=size)
    canvas = image.resize((columns * size, rows * size))
    tiles = [
        canvas.crop((i * size, j * size, (i + 1) * size, (j + 1) * size)) for j in range(rows) for i in range(columns)
    ]
    if len(tiles) > 1:
        tiles.append(image.resize((size, size)))
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    tensors = [torch.from_numpy(np.array(tile)).permute(2, 0, 1).contiguous().float().div(255) for tile in tiles]
    return torch.stack([(tensor - mean) / std for tensor in tensors])


def main() -> None:
    """Time the three ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    data = image()
    ways = {
        "plain": lambda: plain(data),
        "default": lambda: pixel_values(data, TileConfig()),
        "fast": lambda: pixel_values(data, TileConfig(fast=True)),
    }
    results = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    rows = {}
    for name in ways:
        ratios = [a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)]
        difference = ((results[name] - results["plain"]).abs() * torch.tensor(STD).view(1, 3, 1, 1)).max().item() * 255
        rows[name] = {
            "images_per_s": round(1 / statistics.median(seconds[name]), 2),
            "ratio": round(statistics.median(ratios), 2),
            "largest_difference_255ths": round(difference, 2),
        }
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads(), "tiles": len(results["plain"]), **rows}))
        return
    print(
        f"3000x2000 JPEG -> {len(results['plain'])} tiles, {torch.get_num_threads()} threads, {arguments.rounds} rounds"
    )
    for name, row in rows.items():
        print(f"{name:8} {row['images_per_s']:6.2f} images/s  {row['ratio']:.2f}x  largest difference "
              f"{row['largest_difference_255ths']:.2f}/255")  # fmt: skip


if __name__ == "__main__":
    main()
