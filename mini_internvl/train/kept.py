"""Features of images, kept on disk by image: what an encoder that rests gives is computed once.

An image is encoded alone, and its features are rounded to what is kept before anything reads them, the first time too:
so a step does not depend on which of its images were kept. A key tells the encoder's weights and arithmetic, how the
image is cut, and which image it is.

Values lie in shards (``train.shards``) in ``$MINIVL_CACHE/features`` or ``~/.cache/mini-internvl/features``, for all
runs together up to a limit, and can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mini_internvl.data.index import CACHE_VARIABLE
from mini_internvl.inputs.tiles import TileConfig
from mini_internvl.train.shards import KEY_BYTES, Shards

FORMS = ("bf16", "int8")
SCALE_BYTES = 4  # of the float32 behind each token of 8 bits
RECOUNTS = 64  # times that the folder is looked at again while the limit is filled: other processes fill it too

_log = logging.getLogger(__name__)


class KeptFeatures:
    """The kept features of one encoder, rows of one width. Worker processes load them; those that train store them.

    ``form`` is ``bf16``, or ``int8``: each row over a scale of its own, the largest magnitude / 127.
    """

    def __init__(
        self, folder: Path, encoder: str, *, shape: tuple[int, int], limit: int, form: str = "bf16"
    ) -> None:  # fmt: skip
        """``encoder`` names its weights and arithmetic; ``shape`` is of a tile's features; ``limit`` in bytes."""
        self.folder, self.encoder, self.shape, self.limit, self.form = folder, encoder, shape, limit, form
        self.shards = Shards(folder / encoder)
        self.room: int | None = None  # bytes that may be written before the folder is looked at again
        self.closed = False  # nothing more is stored

    @property
    def tile_bytes(self) -> int:
        return tile_bytes(self.shape, self.form)

    def key(self, source: Any, scale: int, tiles: TileConfig, grid: tuple[int, int]) -> str:
        """The name of an image, cut into this grid; "" where only decoding it would tell which it is."""
        identity = _identity(source)
        if identity is None:
            return ""
        cut = scale, tiles.image_size, grid, tiles.use_thumbnail, tiles.fast
        return _hash(json.dumps([self.encoder, identity, cut]).encode())

    def pixels_key(self, tiles: Tensor) -> str:
        """The name of an image by its pixels, (tiles, S, S, 3) uint8: of drawn ones too, wherever they come from."""
        return _hash(json.dumps([self.encoder, list(tiles.shape), _hash(as_bytes(tiles).data)]).encode())

    def load(self, key: str, tiles: int) -> Tensor | None:
        """(tiles, *shape) as they are kept, or ``None`` where they are not, or the entry is damaged."""
        value = self.shards.get(bytes.fromhex(key)) if len(key) == 2 * KEY_BYTES else None
        if value is None or len(value) != tiles * self.tile_bytes:
            return None
        return torch.frombuffer(value, dtype=torch.bfloat16 if self.form == "bf16" else torch.int8).view(
            tiles, self.shape[0], -1
        )

    def store(self, key: str, kept: Tensor) -> None:
        """Keep an image's features as :meth:`pack` gives them, unless the limit is reached, which is told once."""
        if not key or self.closed:
            return
        values = as_bytes(kept)
        size = len(values)
        try:
            if self.room is None or size > self.room:
                left = self.limit - _used(self.folder)
                self.room = min(left, max(size, self.limit // RECOUNTS))
            if size > self.room:
                self._close(f"the limit of {self.limit / 1e9:g} GB is reached (cache_gb in the recipe)")
                return
            self.shards.put(bytes.fromhex(key), values.data)
        except OSError as error:
            self._close(str(error))
            return
        self.room -= size

    def pack(self, features: Tensor) -> Tensor:
        """(tiles, *shape) -> as they are kept, rounded."""
        if self.form == "bf16":
            return features.to(torch.bfloat16)
        values = features.float()
        scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        rounded = (values / scale).round().to(torch.int8)
        return torch.cat([rounded, scale.contiguous().view(torch.int8)], -1)

    def unpack(self, kept: Tensor) -> Tensor:
        """What :meth:`pack` was given, but for rounding: bfloat16, or float32 of 8 bits."""
        if self.form == "bf16":
            return kept
        scale = kept[..., -SCALE_BYTES:].contiguous().view(torch.float32)
        return kept[..., :-SCALE_BYTES].float() * scale

    def _close(self, reason: str) -> None:
        self.closed = True
        _log.warning(
            "features of images are no longer kept in %s: %s; training goes on, slower; delete the folder or set %s",
            self.folder,
            reason,
            CACHE_VARIABLE,
        )


def tile_bytes(shape: tuple[int, int], form: str) -> int:
    """Of a tile's kept features."""
    return shape[0] * (shape[1] * 2 if form == "bf16" else shape[1] + SCALE_BYTES)


def features_folder() -> Path:
    """Where features are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/mini-internvl").expanduser() / "features"


def as_bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor, one after the other."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _identity(source: Any) -> list[Any] | None:
    """What tells an image from others without decoding it; ``None`` for a PIL image or an open file."""
    if isinstance(source, str) and source.startswith("data:"):
        return [_hash(source.encode())]
    if isinstance(source, bytes | bytearray):
        return [_hash(source)]
    if not isinstance(source, str | os.PathLike):
        return None
    path = os.fsdecode(source)
    try:
        facts = os.stat(path)
    except (OSError, ValueError):  # reading it will say why
        return None
    return [os.path.abspath(path), facts.st_size, facts.st_mtime_ns]


def _hash(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=KEY_BYTES).hexdigest()


def _used(folder: Path) -> int:
    """Bytes of all files in a folder; files that go meanwhile do not count."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except OSError:  # deleted meanwhile
                continue
    return total
