"""Hashes of images: by their content, wherever they lie, and by what they look like."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Iterable
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
GROUPS, GROUP = 4, 15  # of the lowest frequencies: images are looked up by each group
UNSURE = 4  # frequencies of a group, those nearest to their median, in which an image that is looked up may differ
ROUNDING = 1e-3  # of squared distances of grey copies of 16 bits


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


def content_hash(pixels: np.ndarray) -> str:
    """Of an array's shape, type and values."""
    pixels = np.ascontiguousarray(pixels)
    digest = hashlib.blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
    digest.update(pixels.data)
    return digest.hexdigest()


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
    low = _lowest(grey)
    signs = low > np.median(low)
    bits = int.from_bytes(np.packbits(signs).tobytes(), "big")
    return Look(bits=bits, grey=(grey.ravel() / np.linalg.norm(grey)).astype(np.float16))


@functools.cache
def _cosines() -> np.ndarray:
    """(LOW, SIDE) rows of the cosine transform, each of length 1."""
    rows, columns = np.mgrid[:LOW, :SIDE]
    cosines = np.cos(np.pi * rows * (columns + 0.5) / SIDE)
    return (cosines / np.linalg.norm(cosines, axis=1, keepdims=True)).astype(np.float32)


class Looks:
    """Images to find similar ones among, without comparing with all of them.

    The lowest frequencies of an image, each above or below its median over the known images, are four groups of bits
    with a table each. An image is looked up by its own bits and by those with any of its least certain ones turned
    over, and compared with what is found so. Medians follow the images, so images of one kind are told apart, too.
    """

    def __init__(self, known: Iterable[Look] = ()) -> None:
        self._columns: tuple[np.ndarray, ...] = (
            np.empty(64, np.uint64),
            np.empty((64, LOW * LOW), np.float32),
            np.empty((64, SIDE * SIDE), np.float16),
        )
        self._count = 0
        self._medians = np.zeros((GROUPS, GROUP), np.float32)
        self._tables: tuple[dict[int, list[int]], ...] = tuple({} for _ in range(GROUPS))
        for one in known:
            self.add(one)

    def add(self, image: Look) -> int:
        """Add an image; returns its number, from 0."""
        number, low = self._count, _lowest(image.grey)
        if number == len(self._columns[0]):
            self._settle()
            self._columns = tuple(np.concatenate([column, np.empty_like(column)]) for column in self._columns)
        for column, value in zip(self._columns, (image.bits, low, image.grey), strict=True):
            column[number] = value
        self._enter(number, low[None])
        self._count += 1
        return number

    def similar(self, image: Look) -> int | None:
        """The number of the most similar one, or ``None`` where none is similar enough."""
        bits, lowest, grey = self._columns
        low = _lowest(image.grey)
        near = self._met(low)
        near = near[((lowest[near] - low) ** 2).sum(1) <= 2 - 2 * MIN_CORRELATION + ROUNDING]
        differing = (bits[near] ^ np.uint64(image.bits)).view(np.uint16)
        near = near[_bit_counts()[differing].reshape(-1, 4).sum(1) <= MAX_BITS]
        if not len(near):
            return None
        alike = grey[near].astype(np.float32) @ image.grey.astype(np.float32)
        best = int(alike.argmax())
        return int(near[best]) if alike[best] >= MIN_CORRELATION else None

    def _settle(self) -> None:
        """Take the medians of all images, and enter them anew."""
        low = self._columns[1][: self._count]
        self._medians = np.median(low[:, _order()], axis=0).reshape(GROUPS, GROUP)
        for table in self._tables:
            table.clear()
        self._enter(0, low)

    def _enter(self, first: int, low: np.ndarray) -> None:
        above = low[:, _order()].reshape(-1, GROUPS, GROUP) > self._medians
        for table, keys in zip(self._tables, (above @ _powers()).T.tolist(), strict=True):
            for number, key in enumerate(keys, first):
                table.setdefault(key, []).append(number)

    def _met(self, low: np.ndarray) -> np.ndarray:
        """Numbers of the images that may be similar, in order."""
        beyond = low[_order()].reshape(GROUPS, GROUP) - self._medians
        unsure = np.argpartition(np.abs(beyond), UNSURE, axis=1)[:, :UNSURE]
        turned = (_powers()[unsure] @ _subsets()) ^ ((beyond > 0) @ _powers())[:, None]
        met = {
            number
            for table, keys in zip(self._tables, turned.tolist(), strict=True)
            for key in keys
            for number in table.get(key, ())
        }
        return np.array(sorted(met), np.int64)


def _lowest(grey: np.ndarray) -> np.ndarray:
    """(64,) the lowest frequencies of a grey copy; their distance is at most that of the copies."""
    return (_cosines() @ grey.astype(np.float32).reshape(SIDE, SIDE) @ _cosines().T).ravel()


@functools.cache
def _order() -> np.ndarray:
    """(GROUPS * GROUP,) places of the lowest frequencies without the mean, in their order."""
    rows, columns = np.mgrid[:LOW, :LOW]
    return np.argsort((rows**2 + columns**2).ravel(), kind="stable")[1 : GROUPS * GROUP + 1]


@functools.cache
def _powers() -> np.ndarray:
    """(GROUP,) values of the bits of a group."""
    return 1 << np.arange(GROUP)


@functools.cache
def _subsets() -> np.ndarray:
    """(UNSURE, 2 ** UNSURE) every choice of so many things, a column each."""
    return np.arange(1 << UNSURE) >> np.arange(UNSURE)[:, None] & 1


@functools.cache
def _bit_counts() -> np.ndarray:
    """(65536,) how many bits of a number are set."""
    return np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(1, dtype=np.uint8)
