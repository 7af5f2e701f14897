"""Dynamic resolution: an image becomes the grid of tiles that fits its shape, then a thumbnail of the whole.

The grid, the resizing and the numbers are the original's, bit for bit, by default; the work is arranged anew: decode
once, resize canvas and thumbnail in halves on two threads, and normalise all tiles in one go.
Source: ``internvl/train/dataset.py`` (``dynamic_preprocess``, ``build_transform``); paper section 3.1.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mini_internvl.inputs.images import load_image

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MOST_TILES = 1_000  # largest accepted tile limit: the time to choose a grid grows with its square
LARGE_IMAGE_PIXELS = 600_000  # pixels of an image from which threads pay


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """How an image is cut."""

    image_size: int = 448
    """Tile side in pixels."""
    min_tiles: int = 1
    max_tiles: int = 12
    """Most tiles of the grid (12 in training, up to 40 in testing), thumbnail not counted."""
    use_thumbnail: bool = True
    """Append the whole image as a last tile when the grid has several."""
    fast: bool = False
    """Resize with torch instead of Pillow: faster, equal within 1/255 but for a few pixels in a million."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles <= MOST_TILES:
            raise ValueError(
                f"tiles must be 1 <= min <= max <= {MOST_TILES:,}, not {self.min_tiles} and {self.max_tiles}"
            )

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows) that an image of this size is cut into, without the thumbnail."""
        return choose_grid(
            width, height, min_tiles=self.min_tiles, max_tiles=self.max_tiles, image_size=self.image_size
        )


def shares_shown(width: int, height: int, config: TileConfig) -> tuple[float, float]:
    """Shares of an image's pixels that its grid shows, and that one tile alone would show.

    A side shows at most the pixels that it has: what is enlarged gains nothing.
    """
    grid, one = (
        min(1, config.image_size * columns / width) * min(1, config.image_size * rows / height)
        for columns, rows in (config.grid(width, height), (1, 1))
    )
    return grid, one


@functools.cache
def _grids(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """All (columns, rows) with a product in range, smaller products first."""
    sides = range(1, max_tiles + 1)
    grids = [(i, j) for i in sides for j in sides if min_tiles <= i * j <= max_tiles]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


@functools.lru_cache(maxsize=4096)
def choose_grid(
    width: int, height: int, *, min_tiles: int = 1, max_tiles: int = 12, image_size: int = 448
) -> tuple[int, int]:
    """(columns, rows) of the grid whose shape is nearest to the image's.

    Of equally near grids the larger one is taken when the image's area exceeds half the grid's.
    """
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        difference = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * image_size * image_size * columns * rows
        if difference < best_difference or (difference == best_difference and large_enough):
            best, best_difference = (columns, rows), difference
    return best


def count_tiles(width: int, height: int, config: TileConfig) -> int:
    """Tiles that an image of this size is cut into, the thumbnail counted."""
    columns, rows = config.grid(width, height)
    return columns * rows + (columns * rows > 1 and config.use_thumbnail)


def split_tiles(image: Image.Image, config: TileConfig) -> np.ndarray:
    """An RGB image -> uint8 tiles (N, S, S, 3), row by row, the thumbnail last."""
    size = config.image_size
    columns, rows = config.grid(image.width, image.height)
    targets = [(columns * size, rows * size)]
    if columns * rows > 1 and config.use_thumbnail:
        targets.append((size, size))
    image.load()  # not left to the threads
    resize = _resize_torch if config.fast else _resize_pillow
    canvas, *thumbnail = resize(image, targets)
    tiles = canvas.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    return np.concatenate([tiles, *(small[None] for small in thumbnail)])


def _vertical_first(width: int, height: int, target: tuple[int, int]) -> bool:
    """Whether Pillow 13 resizes vertically before horizontally; the order shows, as it rounds to bytes in between."""
    shrinks = height - target[1]
    return shrinks > 0 and shrinks > 2 * (width - target[0])


def _resize_pillow(image: Image.Image, targets: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Resize to each (width, height), bicubic; a large image half by half on two threads."""
    if image.width * image.height < LARGE_IMAGE_PIXELS:
        return [np.asarray(image.resize(target)) for target in targets]
    outputs = [np.empty((height, width, 3), np.uint8) for width, height in targets]
    _on_threads([functools.partial(_resize_half, image, outputs, half) for half in (0, 1)])
    return outputs


def _resize_half(image: Image.Image, outputs: Sequence[np.ndarray], half: int) -> None:
    """Fill the left (0) or right (1) half of each output (H, W, 3) with the image's resized half.

    Halves are equal to the whole bit for bit: they are cut across the direction that Pillow resizes first, so that it
    keeps its order, and at the middle, whose place in the source is a whole or half pixel, exact in Pillow's floats.
    Where it resizes vertically first, the halves are the upper and the lower one. An odd side is not cut.
    """
    width, height = image.size
    for output in outputs:
        rows, columns, _ = output.shape
        vertical = _vertical_first(width, height, (columns, rows))
        side = rows if vertical else columns
        if side % 2:
            if half == 0:
                output[:] = np.asarray(image.resize((columns, rows)))
            continue
        begin, end = half * side // 2, (half + 1) * side // 2
        if vertical:
            box = (0.0, height * half / 2, float(width), height * (half + 1) / 2)
            output[begin:end] = np.asarray(image.resize((columns, rows // 2), box=box))
        else:
            box = (width * half / 2, 0.0, width * (half + 1) / 2, float(height))
            output[:, begin:end] = np.asarray(image.resize((columns // 2, rows), box=box))


def _resize_torch(image: Image.Image, targets: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Resize with torch's antialiased bicubic kernel on bytes, in Pillow's order; the thumbnail on a second thread."""
    pixels = _shared(np.asarray(image)).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last in memory

    def one(width: int, height: int) -> np.ndarray:
        source = pixels
        if _vertical_first(image.width, image.height, (width, height)):
            source = F.interpolate(source, size=(height, image.width), mode="bicubic", antialias=True)
        resized = F.interpolate(source, size=(height, width), mode="bicubic", antialias=True)
        return resized[0].permute(1, 2, 0).numpy()

    jobs = [functools.partial(one, *target) for target in targets]
    return _on_threads(jobs) if image.width * image.height >= LARGE_IMAGE_PIXELS else [job() for job in jobs]


def _shared(pixels: np.ndarray) -> Tensor:
    """The same bytes as a tensor that must not be written to; copied where numpy or torch is too old to share them."""
    try:
        return torch.from_dlpack(pixels)
    except BufferError:
        return torch.from_numpy(pixels.copy())


def _on_threads(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run the first job here and the others on threads; results in order."""
    others = [_pool(os.getpid()).submit(job) for job in jobs[1:]]
    first = jobs[0]()
    return [first, *(other.result() for other in others)]


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One pool per process: threads do not survive a fork."""
    return ThreadPoolExecutor(2, thread_name_prefix="tiles")


@functools.cache
def _statistics() -> tuple[Tensor, Tensor]:
    return torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)


def normalise(tiles: np.ndarray | Tensor, fast: bool = False) -> Tensor:
    """uint8 (N, S, S, 3) -> float32 (N, 3, S, S): to [0, 1], minus the ImageNet mean, over its deviation.

    A tensor is normalised where it is. ``fast`` does it in one multiplication and addition, equal but for float32
    rounding.
    """
    given = torch.from_numpy(tiles) if isinstance(tiles, np.ndarray) else tiles
    mean, std = (value.to(given.device) for value in _statistics())
    n, height, width, _ = given.shape
    pixels = torch.empty(n, 3, height, width, device=given.device)
    pixels.copy_(given.permute(0, 3, 1, 2))
    if fast:
        return pixels.mul_(1 / (255 * std)).sub_(mean / std)
    return pixels.div_(255).sub_(mean).div_(std)


def pixel_values(source: Any, config: TileConfig) -> Tensor:
    """An image (see :func:`mini_internvl.inputs.images.load_image`) -> normalised tiles (N, 3, S, S), float32."""
    return normalise(split_tiles(load_image(source), config), config.fast)
