"""Pictures as data URLs for a page: JPEG, as good as a budget of bytes allows."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from mini_internvl.inputs.images import ImageError, load_image

LADDER = ((360, 90), (320, 85), (320, 75), (256, 75), (200, 70), (160, 65), (112, 60), (80, 50))
"""(longest side in pixels, JPEG quality), best first."""


def data_url(path: Path, budget: int) -> str | None:
    """The picture in the best form of at most ``budget`` bytes (the smallest form if none is that small).

    Returns None when the file is missing or no picture, so that a report still appears where data was moved.
    """
    try:
        image = load_image(path)
    except ImageError:
        return None
    coded = b""
    for side, quality in LADDER:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
        coded = buffer.getvalue()
        if len(coded) <= budget:
            break
    return "data:image/jpeg;base64," + base64.b64encode(coded).decode()
