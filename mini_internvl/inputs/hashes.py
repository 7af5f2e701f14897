"""Hashes of images: by their content, wherever they lie, and by what they look like."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mini_internvl.inputs.images import open_source
from mini_internvl.inputs.messages import Messages, image_parts

KEPT = 1 << 18  # images whose hashes are kept; those inside rows are hashed again, so that they are not held
SIDE, LOW = 32, 8  # of the small grey copy, and of its lowest frequencies
MAX_BITS = 12  # of the 64 in which the hashes of similar images may differ
MIN_CORRELATION = 0.985  # of the grey copies of similar images
FLAT = 3.0  # grey levels: an image whose standard deviation is lower looks like any other


class ImageHashes:
    """SHA-256 of images, each source read once: of a file's bytes, which is much cheaper than decoding them."""

    def __init__(self) -> None:
        self._cached = functools.lru_cache(maxsize=KEPT)(_hash)

    def one(self, source: Any) -> str:
        """The hash of an image by its source; ImageError as when opened."""
        inside = isinstance(source, bytes) or (isinstance(source, str) and source.startswith("data:"))
        return self._cached(source) if isinstance(source, Hashable) and not inside else _hash(source)

    def all(self, messages: Messages) -> list[Any]:
        """The hash of each image, with its own scale and tile limit where it has them; ImageError as when opened."""
        return [
            [
                self.one(part.source),
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


class Look(NamedTuple):
    """What an image looks like: equal after another size, another format or stronger compression."""

    bits: int  # perceptual hash of 64 bits: signs of the lowest frequencies of its cosine transform
    grey: np.ndarray  # (1024,) float16, a grey copy without its mean, of length 1


def look(image: Image.Image) -> Look | None:
    """What an image looks like; ``None`` where it is nearly of one colour, and so like any other such image."""
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.HAMMING)
    grey = np.asarray(small, np.float32)
    grey = grey - grey.mean()
    if grey.std() < FLAT:
        return None
    low = (_cosines() @ grey @ _cosines().T).ravel()
    signs = low > np.median(low)
    bits = int.from_bytes(np.packbits(signs).tobytes(), "big")
    return Look(bits=bits, grey=(grey.ravel() / np.linalg.norm(grey)).astype(np.float16))


@functools.cache
def _cosines() -> np.ndarray:
    """(LOW, SIDE) rows of the cosine transform."""
    rows, columns = np.mgrid[:LOW, :SIDE]
    return np.cos(np.pi * rows * (columns + 0.5) / SIDE).astype(np.float32)


class Looks:
    """Images to find similar ones among."""

    def __init__(self, known: Sequence[Look]) -> None:
        self.bits = np.array([one.bits for one in known], np.uint64)
        self.grey = np.stack([one.grey for one in known]) if known else np.empty((0, SIDE * SIDE), np.float16)

    def similar(self, image: Look) -> int | None:
        """The number of the most similar one, or ``None`` where none is similar enough."""
        differing = (self.bits ^ np.uint64(image.bits)).view(np.uint16)
        near = np.flatnonzero(_bit_counts()[differing].reshape(-1, 4).sum(1) <= MAX_BITS)
        if not len(near):
            return None
        alike = self.grey[near].astype(np.float32) @ image.grey.astype(np.float32)
        best = int(alike.argmax())
        return int(near[best]) if alike[best] >= MIN_CORRELATION else None


@functools.cache
def _bit_counts() -> np.ndarray:
    """(65536,) how many bits of a number are set."""
    return np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(1, dtype=np.uint8)
