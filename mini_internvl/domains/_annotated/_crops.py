"""Large pictures cut into crops, their objects with them: small things in many boxes become large ones in few.

Crops cover the whole picture, spread evenly, and overlap where its side is no multiple of theirs. An object belongs to
every crop that shows at least ``VISIBLE`` of its area; its box is cut off at the crop's edge.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from mini_internvl.domains._annotated import Picture
from mini_internvl.files import new_file
from mini_internvl.inputs.boxes import Box
from mini_internvl.inputs.images import load_image

VISIBLE = 0.4  # share of an object's area that a crop must show


def crop(picture: Picture, side: int, folder: Path) -> Iterator[Picture]:
    """The picture itself where both its sides are at most ``side``, otherwise its crops, written below ``folder``.

    A crop of the same picture that is there already is kept; one of a picture that has changed since is not taken for
    it. ValueError where the picture cannot be read or has another size.
    """
    width, height = picture.size
    if width <= side and height <= side:
        yield picture
        return
    whole = None
    facts = os.stat(picture.image)
    content = f"{picture.id}\0{picture.image}\0{facts.st_size}\0{facts.st_mtime_ns}"
    digest = hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:16]
    name = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', picture.id)[-60:]}-{digest}"
    for top in _starts(height, side):
        for left in _starts(width, side):
            corners = (left, top, min(width, left + side), min(height, top + side))
            file = folder / str(side) / f"{name}_{left}_{top}.jpg"
            if not file.is_file():
                whole = whole or _loaded(picture)
                file.parent.mkdir(parents=True, exist_ok=True)
                with new_file(file, flush=False) as draft:
                    whole.crop(corners).save(draft, "JPEG", quality=95)
            yield replace(
                picture,
                id=f"{picture.id}_{left}_{top}",
                image=str(file),
                size=(corners[2] - left, corners[3] - top),
                corners=corners,
                objects=[(name, cut) for name, box in picture.objects if (cut := _inside(box, corners))],
            )


def _loaded(picture: Picture) -> Image.Image:
    image = load_image(picture.image)
    if image.size != tuple(picture.size):
        raise ValueError(f"{picture.image} is {image.width}x{image.height}; its annotations say {picture.size}")
    return image


def _starts(length: int, side: int) -> list[int]:
    """Where crops of a side begin."""
    if length <= side:
        return [0]
    count = math.ceil(length / side)
    return [round(number * (length - side) / (count - 1)) for number in range(count)]


def _inside(box: Box, corners: tuple[int, int, int, int]) -> Box | None:
    """The part of a box inside a crop, from the crop's corner; ``None`` where too little of it is there."""
    left, top, right, bottom = corners
    x1, y1, x2, y2 = max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom)
    area = (box[2] - box[0]) * (box[3] - box[1])
    if x1 >= x2 or y1 >= y2 or (x2 - x1) * (y2 - y1) < VISIBLE * area:
        return None
    return x1 - left, y1 - top, x2 - left, y2 - top
