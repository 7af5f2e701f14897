"""Features of a frozen encoder, kept on disk: a stage that does not train it reads each image's features again.

What is kept is the encoder's patches, or where the projector is frozen too, the visual tokens after it, which are
smaller. An image is encoded alone and its features are rounded to bfloat16 before anything reads them, the first time
too: so a step does not depend on which of its images were kept. An entry is one file: its values and a checksum. Its
name tells the encoder's weights and arithmetic, how the image is cut, and which image: path, size and time of a file,
the bytes where they are given. So an image whose features are kept is neither read nor decoded. Any other, such as a
drawn one, is encoded each time.

Entries lie in ``$MINIVL_CACHE/features`` or ``~/.cache/mini-internvl/features``, for all runs together up to a limit,
and can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mini_internvl import __version__
from mini_internvl.data.index import CACHE_VARIABLE
from mini_internvl.files import write_bytes
from mini_internvl.inputs.tiles import TileConfig
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.lora import lora_layers
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import Recipe, StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train.learner import ImageFeatures

CHECK_BYTES = 4  # of the checksum at the end of an entry
RECOUNTS = 64  # times that the folder is looked at again while the limit is filled: other processes fill it too

_log = logging.getLogger(__name__)


class FeatureStore:
    """The kept features of one encoder, or of encoder and projector (``projected``).

    Worker processes load what is there; processes that train store what they have encoded.
    """

    def __init__(self, folder: Path, model: InternVL, *, projected: bool, precision: str, limit: int) -> None:
        self.folder, self.projected, self.limit = folder, projected, limit
        self.encoder = _encoder_key(model, projected, precision)
        self.shape = kept_shape(model.config, projected)
        self.room: int | None = None  # bytes that may be written before the folder is looked at again
        self.closed = False  # nothing more is stored

    def key(self, source: Any, scale: int, tiles: TileConfig, grid: tuple[int, int]) -> str:
        """The name of an image, cut into this grid; "" where only decoding it would tell which it is."""
        identity = _identity(source)
        if identity is None:
            return ""
        cut = scale, tiles.image_size, grid, tiles.use_thumbnail, tiles.fast
        return _hash(json.dumps([self.encoder, identity, cut]).encode())

    def load(self, key: str, tiles: int) -> Tensor | None:
        """(tiles, *shape) bfloat16, or ``None`` where they are not kept or the entry is damaged."""
        if not key:
            return None
        try:
            content = bytearray(self._path(key).read_bytes())
        except OSError:
            return None
        values, check = memoryview(content)[:-CHECK_BYTES], content[-CHECK_BYTES:]
        if len(values) != tiles * self.shape[0] * self.shape[1] * 2 or _checksum(values) != check:
            return None
        return torch.frombuffer(values, dtype=torch.bfloat16).view(tiles, *self.shape)

    def store(self, key: str, features: Tensor) -> None:
        """Keep the features of an image, unless the limit is reached, which is told once."""
        if not key or self.closed:
            return
        values = _bytes(features)
        size = len(values) + CHECK_BYTES
        try:
            if self.room is None or size > self.room:
                left = self.limit - _used(self.folder)
                self.room = min(left, max(size, self.limit // RECOUNTS))
            if size > self.room:
                self._close(f"the limit of {self.limit / 1e9:g} GB is reached (cache_gb in the recipe)")
                return
            write_bytes(self._path(key), values.tobytes() + _checksum(values), flush=False)
        except OSError as error:
            self._close(str(error))
            return
        self.room -= size

    def visual_tokens(self, model: InternVL, batch: Batch) -> Tensor:
        """(tiles, tokens per tile, LLM hidden) of a batch's images in their order; encodes and stores what is new."""
        features = self._features(model, batch)
        return features if self.projected else model.project_patches(features)

    def _features(self, model: InternVL, batch: Batch) -> Tensor:
        counts = {kept: [image.tiles for image in batch.images if image.kept == kept] for kept in (True, False)}
        if not counts[False]:
            assert batch.features is not None, "images are marked as kept without features"
            return batch.features
        kept = iter(() if batch.features is None else batch.features.split(counts[True]))
        cut, made = iter(batch.tiles.split(counts[False])), dict[str, Tensor]()
        found = []
        for image in batch.images:
            if image.kept:
                found.append(next(kept))
                continue
            tiles = next(cut)
            if not image.key or image.key not in made:
                made[image.key] = self._encode(model, tiles)
                self.store(image.key, made[image.key])
            found.append(made[image.key])
        return torch.cat(found)

    @torch.no_grad()
    def _encode(self, model: InternVL, tiles: Tensor) -> Tensor:
        """One image alone, so that its features are a function of it; dropout of frozen adapters rests."""
        training = model.vision_model.training
        model.vision_model.eval()
        try:
            images = ImageFeatures(model, tiles)
            made = images.visual_tokens if self.projected else images.vision[:, 1:]
        finally:
            model.vision_model.train(training)
        return made.to(torch.bfloat16)

    def _path(self, key: str) -> Path:
        return self.folder / self.encoder / key[:2] / key

    def _close(self, reason: str) -> None:
        self.closed = True
        _log.warning(
            "features of images are no longer kept in %s: %s; training goes on, slower; delete the folder or set %s",
            self.folder,
            reason,
            CACHE_VARIABLE,
        )


def is_projected(stage: StageRecipe) -> bool:
    """Whether what a stage keeps are visual tokens: where the projector is frozen too."""
    return "projector" not in stage.parts()


def kept_shape(config: VLMConfig, projected: bool) -> tuple[int, int]:
    """Of a tile's features."""
    if projected:
        return config.tokens_per_tile, config.llm.hidden_size
    return (config.image_size // config.vision.patch_size) ** 2, config.vision.hidden_size


def open_store(model: InternVL, recipe: Recipe, stage: StageRecipe) -> FeatureStore:
    """That of a stage whose model has the weights that it trains with."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/mini-internvl").expanduser() / "features"
    return FeatureStore(
        folder,
        model,
        projected=is_projected(stage),
        precision=recipe.precision,
        limit=int(recipe.cache_gb * 1e9),
    )


def _encoder_key(model: InternVL, projected: bool, precision: str) -> str:
    """Hash of all that decides an image's features, but for the image."""
    config = model.config
    parts: list[nn.Module] = [model.vision_model, *([model.mlp1] if projected else [])]
    facts = [__version__, precision, model.device.type, config.select_layer, repr(config.vision)]
    facts += [config.downsample_ratio, config.ps_version] if projected else []
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)
    for part in parts:
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor).data)
        for name, layer in lora_layers(part).items():  # what is held in 4 bits is in no state
            digest.update(name.encode())
            digest.update(_bytes(layer.base_weight()).data)
    return digest.hexdigest()


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


def _hash(content: bytes | bytearray) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor, one after the other."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _checksum(values: Any) -> bytes:
    return zlib.crc32(values).to_bytes(CHECK_BYTES, "little")


def _used(folder: Path) -> int:
    """Bytes of all files in a folder; files that go meanwhile do not count."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except OSError:  # replaced or deleted by another process
                continue
    return total
