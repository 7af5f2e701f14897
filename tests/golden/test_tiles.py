"""Grids exact, pixel values within 1e-5 of the original."""

from __future__ import annotations

import json

import pytest

from mini_internvl.inputs.images import load_image
from mini_internvl.inputs.tiles import TileConfig, choose_grid, normalise, split_tiles


def test_grids(golden):
    for case in json.loads((golden / "tiles/grids.json").read_text()):
        grid = choose_grid(case["width"], case["height"], min_tiles=case["min_num"], max_tiles=case["max_num"])
        assert grid == (case["columns"], case["rows"]), case


def test_pixel_values(golden):
    for case in json.loads((golden / "tiles/pixels.json").read_text()):
        config = TileConfig(
            image_size=case["image_size"], max_tiles=case["max_num"], use_thumbnail=case["use_thumbnail"]
        )
        tiles = split_tiles(load_image(golden / "tiles" / case["file"]), config)
        assert len(tiles) == case["tiles"], case["file"]
        assert tiles.mean((1, 2)) == pytest.approx(_array(case["mean_uint8_per_tile"]), abs=1e-3)
        pixels = normalise(tiles)
        assert pixels.double().sum().item() == pytest.approx(case["pixel_values_sum"], rel=1e-7, abs=1.0)
        assert pixels.double().abs().sum().item() == pytest.approx(case["pixel_values_abs_sum"], rel=1e-7)
        for probe in case["probe"]:
            value = pixels[probe["tile"], probe["channel"], probe["row"], probe["col"]].item()
            assert value == pytest.approx(probe["value"], abs=1e-5), (case["file"], probe)


def _array(rows):
    import numpy as np

    return np.array(rows)
