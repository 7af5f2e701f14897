"""Hashes of images by their content, wherever they lie."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable
from typing import Any

from PIL import Image

from mini_internvl.inputs.images import open_source
from mini_internvl.inputs.messages import Messages, image_parts


class ImageHashes:
    """SHA-256 of images, each source read once: of a file's bytes, which is much cheaper than decoding them."""

    def __init__(self) -> None:
        self._cached = functools.cache(_hash)

    def all(self, messages: Messages) -> list[Any]:
        """The hash of each image, with its own scale and tile limit where it has them; ImageError as when opened."""
        return [
            [
                self._cached(part.source) if isinstance(part.source, Hashable) else _hash(part.source),
                *([part.scale] if part.scale != 1 else []),
                *([f"max_tiles {part.max_tiles}"] if part.max_tiles else []),
            ]
            for part in image_parts(messages)
        ]


def _hash(source: Any) -> str:
    if isinstance(source, Image.Image):
        return hashlib.sha256(f"{source.mode} {source.size}".encode() + source.tobytes()).hexdigest()
    _, stream = open_source(source)
    with stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
