"""Images for a page: JPEG data URLs within a budget."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from mini_internvl.report.images import data_url


def decode(url: str | None) -> tuple[int, Image.Image]:
    assert url is not None
    head, body = url.split(",")
    assert head == "data:image/jpeg;base64"
    data = base64.b64decode(body)
    return len(data), Image.open(io.BytesIO(data))


def test_small_images_keep_their_size(tmp_path: Path) -> None:
    Image.new("RGBA", (112, 80), (200, 30, 40, 255)).save(tmp_path / "a.png")
    _, image = decode(data_url(tmp_path / "a.png", 40_000))
    assert image.size == (112, 80)
    assert np.abs(np.asarray(image)[40, 60].astype(int) - [200, 30, 40]).max() < 8


def test_large_images_meet_the_budget(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    for budget in (60_000, 12_000, 4_000):
        size, image = decode(data_url(tmp_path / "a.png", budget))
        assert size <= budget
        assert image.width > image.height


def test_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    assert data_url(tmp_path / "text.png", 1000) is None
    assert data_url(tmp_path / "missing.png", 1000) is None
