"""Images as data URLs for a page: JPEG, as good as a budget of bytes allows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from mini_internvl.inputs.images import ImageError, load_image

LADDER = (
    *((1024, 80), (800, 78), (640, 75), (512, 70), (448, 65), (384, 60), (320, 55)),
    *((256, 75), (200, 70), (160, 65), (112, 60), (80, 50)),
)
"""(longest side in pixels, JPEG quality), best first."""


def data_url(source: Any, budget: int) -> str | None:
    """The image in the best form of at most ``budget`` bytes before base64 (the smallest form if none is that small).

    None when the file is missing or no image, so that a report still appears where data was moved.
    """
    try:
        image = load_image(source).copy()
    except ImageError:
        return None
    coded = b""
    for side, quality in LADDER:
        if coded and side != LADDER[-1][0] and len(coded) * (side / max(image.size)) ** 2 > 1.5 * budget:
            continue  # certainly too large still: not worth the time
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
        coded = buffer.getvalue()
        if len(coded) <= budget:
            break
    return as_url(coded, "jpeg")


def as_url(content: bytes, kind: str) -> str:
    """The bytes of an image file as a data URL; ``kind`` is "jpeg" or "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def data_urls(sources: Sequence[Any], size: int, largest: int) -> list[str | None]:
    """Images that share ``size`` bytes, at most ``largest`` each; what one leaves over goes to the next."""
    urls = []
    for left, source in zip(range(len(sources), 0, -1), sources, strict=True):
        url = data_url(source, min(largest, size // left))
        size -= len(url) * 3 // 4 if url else 0
        urls.append(url)
    return urls
