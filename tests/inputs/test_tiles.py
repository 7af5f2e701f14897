"""Dynamic resolution: grid properties, tiles in order, the thumbnail, threads, and the fast path's distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mini_internvl.inputs import tiles
from mini_internvl.inputs.tiles import TileConfig, choose_grid, normalise, pixel_values, split_tiles

sides = st.integers(1, 6000)
limits = st.sampled_from([1, 2, 3, 6, 12, 24, 40])


def scene(width, height, seed=0):
    """Smooth colours with noise and hard edges, as in a photograph of a page."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (7, 9, 3), dtype=np.uint8)).resize((width, height))
    pixels = np.asarray(coarse).astype(int) + rng.integers(-12, 12, (height, width, 3))
    pixels[height // 3 : height // 2, :: max(2, width // 50)] = 0
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(width=sides, height=sides, max_tiles=limits)
def test_no_other_grid_is_nearer_and_ties_go_by_area(width, height, max_tiles):
    columns, rows = choose_grid(width, height, max_tiles=max_tiles)
    assert 1 <= columns * rows <= max_tiles
    grids = [(i, j) for i in range(1, max_tiles + 1) for j in range(1, max_tiles // i + 1)]
    difference = abs(width / height - columns / rows)
    assert difference == min(abs(width / height - i / j) for i, j in grids)
    equal = sorted(i * j for i, j in grids if abs(width / height - i / j) == difference)
    fitting = [area for area in equal if width * height > 0.5 * 448 * 448 * area]
    assert columns * rows == (max(fitting) if fitting else equal[0])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(side=sides, max_tiles=limits)
def test_a_square_image_has_a_square_grid(side, max_tiles):
    columns, rows = choose_grid(side, side, max_tiles=max_tiles)
    assert columns == rows


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [(448, 448, (1, 1)), (896, 896, (2, 2)), (1344, 1344, (3, 3)), (800, 400, (2, 1)), (800, 1300, (2, 3))],
)
def test_known_grids(width, height, grid):
    assert choose_grid(width, height) == grid


def test_a_least_number_of_tiles_is_kept():
    for width, height in ((448, 448), (100, 900), (3000, 200)):
        columns, rows = choose_grid(width, height, min_tiles=5, max_tiles=9)
        assert 5 <= columns * rows <= 9


@pytest.mark.parametrize(("low", "high"), [(0, 4), (5, 4), (-1, 1)])
def test_impossible_limits_are_refused(low, high):
    with pytest.raises(ValueError, match="1 <= min <= max"):
        TileConfig(min_tiles=low, max_tiles=high)


def test_tiles_go_row_by_row_and_the_thumbnail_comes_last():
    config = TileConfig(image_size=16, max_tiles=6)
    image = scene(48, 32)  # exactly the canvas of 3 x 2 tiles
    cut = split_tiles(image, config)
    assert cut.shape == (7, 16, 16, 3)
    assert cut.dtype == np.uint8
    whole = np.asarray(image)
    for number in range(6):
        row, column = divmod(number, 3)
        assert np.array_equal(cut[number], whole[16 * row : 16 * row + 16, 16 * column : 16 * column + 16])
    assert np.array_equal(cut[6], np.asarray(image.resize((16, 16))))
    assert split_tiles(image, TileConfig(image_size=16, max_tiles=6, use_thumbnail=False)).shape == (6, 16, 16, 3)


def test_one_tile_has_no_thumbnail():
    assert split_tiles(scene(100, 100), TileConfig(image_size=16, max_tiles=1)).shape == (1, 16, 16, 3)


def test_a_canvas_is_one_bicubic_resize():
    image = scene(90, 50)
    cut = split_tiles(image, TileConfig(image_size=32, max_tiles=2))
    canvas = np.asarray(image.resize((64, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(np.concatenate([cut[0], cut[1]], axis=1), canvas)


def test_threads_change_no_bit(monkeypatch):
    image = scene(1100, 700)
    assert image.width * image.height > tiles.LARGE_IMAGE_PIXELS
    config = TileConfig(image_size=112, max_tiles=12)
    threaded = split_tiles(image, config)
    monkeypatch.setattr(tiles, "LARGE_IMAGE_PIXELS", 10**9)
    monkeypatch.setattr(tiles, "_on_threads", None)  # the plain path must not need it
    assert np.array_equal(split_tiles(image, config), threaded)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=120)
@given(width=st.integers(2, 260), height=st.integers(2, 260), columns=st.integers(1, 6), rows=st.integers(1, 6))
def test_threads_change_no_bit_for_any_shape(width, height, columns, rows):
    """Smaller and larger canvases, odd and even sides, either order of Pillow's two passes."""
    image = scene(width, height)
    targets = [(columns * 28, rows * 28), (28, 28), (columns * 7, rows * 7)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "LARGE_IMAGE_PIXELS", 0)
        threaded = tiles._resize_pillow(image, targets)
    for target, pixels in zip(targets, threaded, strict=True):
        assert np.array_equal(pixels, np.asarray(image.resize(target))), target


@pytest.mark.parametrize("size", [(1100, 700), (300, 200), (60, 90), (150, 900), (700, 1300)])
def test_the_fast_path_stays_near(size):
    image = scene(*size)
    plain = split_tiles(image, TileConfig(image_size=112, max_tiles=6)).astype(int)
    fast = split_tiles(image, TileConfig(image_size=112, max_tiles=6, fast=True)).astype(int)
    assert fast.shape == plain.shape
    difference = np.abs(fast - plain)
    assert difference.max() <= 2
    assert (difference <= 1).mean() > 0.999


def test_the_fast_path_copies_where_bytes_cannot_be_shared(monkeypatch):
    def refuse(_):
        raise BufferError

    image, config = scene(300, 200), TileConfig(image_size=112, max_tiles=6, fast=True)
    shared = split_tiles(image, config)
    monkeypatch.setattr(torch, "from_dlpack", refuse)
    assert np.array_equal(split_tiles(image, config), shared)


def test_values_are_normalised_by_channel():
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    pixels[1] = 255
    pixels[0, 1, 2, 0] = 128
    values = normalise(pixels)
    assert (values.shape, values.dtype) == ((2, 3, 4, 4), torch.float32)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for channel in range(3):
        assert values[0, channel, 0, 0].item() == pytest.approx(-mean[channel] / std[channel], abs=1e-6)
        assert values[1, channel, 3, 3].item() == pytest.approx((1 - mean[channel]) / std[channel], abs=1e-6)
    assert values[0, 0, 1, 2].item() == pytest.approx((128 / 255 - 0.485) / 0.229, abs=1e-6)


def test_a_file_becomes_pixel_values(image):
    values = pixel_values(image, TileConfig(image_size=56, max_tiles=4))
    assert values.shape == (5, 3, 56, 56)  # 120 x 80: 2 x 2 tiles and the thumbnail
    assert torch.equal(values, normalise(split_tiles(Image.open(image), TileConfig(image_size=56, max_tiles=4))))
