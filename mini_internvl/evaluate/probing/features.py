"""Features of encoders: each picture as one tile, its class token and its patches averaged over a coarse grid.

What is computed is kept, a file for each block of pictures, in ``$MINIVL_CACHE/probe`` or
``~/.cache/mini-internvl/probe``: a second call reads it, and a call that was stopped goes on. A file's name tells the
encoder's weights and arithmetic, the pictures, their size and the hidden states. The folder can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mini_internvl import __version__
from mini_internvl.data.index import CACHE_VARIABLE
from mini_internvl.engine import hub
from mini_internvl.engine.device import resolve_device, resolve_dtype
from mini_internvl.evaluate.probing.tasks import Drawn, Picture
from mini_internvl.files import new_file
from mini_internvl.inputs.tiles import TileConfig, normalise, split_tiles
from mini_internvl.model.adapter import is_adapter
from mini_internvl.model.checkpoint import load_vision
from mini_internvl.model.files import CheckpointError, read_file, write_file
from mini_internvl.model.vision import InternViT
from mini_internvl.records import Interrupted

BLOCK, BATCH = 64, 16  # pictures of a kept file; of a forward pass
POOLS = ("mean", "cls", "both")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A frozen encoder on its device, with what tells its features from another's."""

    name: str
    model: InternViT
    key: str  # hash of weights, configuration and arithmetic
    path: str = ""

    @property
    def states(self) -> int:
        """Hidden states: after the embedding, and after each block."""
        return len(self.model.encoder.layers) + 1


def open_encoder(
    model: str | Path | InternViT, *, name: str = "", device: str = "auto", dtype: str = "auto"
) -> Encoder:
    """An encoder to be probed.

    Args:
        model: "nano", a bare InternViT folder, the folder of a whole model or its hub id, or an encoder in memory,
            which stays as it is, where it is.
        name: what tables call it; the folder's name when left out.
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: auto, float32, bfloat16 or float16.

    Raises:
        CheckpointError, ConfigError: it is missing, damaged or of another kind.
    """
    if isinstance(model, InternViT):
        return Encoder(name=name or "encoder", model=model.eval(), key=_key(model))
    folder = hub.resolve(None if str(model) == "nano" else model)
    if is_adapter(folder):
        raise CheckpointError(f"{folder} is an adapter; merge it first (minivl merge) and probe the merged model")
    place = resolve_device(device)
    loaded = load_vision(folder, dtype=resolve_dtype(dtype, place, folder), device=str(place))
    short = "nano" if str(model) == "nano" else Path(str(model)).name
    return Encoder(name=name or short, model=loaded, key=_key(loaded), path=str(folder))


def _key(model: InternViT) -> str:
    digest = hashlib.blake2b(json.dumps([__version__, repr(model.config)]).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is taken of each picture."""

    layers: tuple[int, ...]  # numbers of hidden states, from 0
    size: int  # side of the tile in pixels
    grid: int = 1  # patches are averaged over grid x grid cells
    view: int = 0  # 0: the picture as it is; else the seed of a crop of it with another brightness


def collect(
    encoder: Encoder,
    pictures: Sequence[Picture],
    wanted: Wanted,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Float32 (pictures, layers, 1 + grid * grid, hidden): the class token, then the means of the cells by rows.

    Raises:
        ImageError: a picture cannot be read.
        ValueError: the size is no multiple of the encoder's patches.
        Interrupted: ``should_stop`` said so; what is done is kept.
    """
    patch = encoder.model.config.patch_size
    if wanted.size % patch or wanted.size // patch < wanted.grid:
        raise ValueError(f"the image size is {wanted.size}; for {encoder.name} it must be a multiple of {patch}")
    found, keeps = list[np.ndarray](), True
    for start in range(0, len(pictures), BLOCK):
        if should_stop():
            raise Interrupted(f"stopped after {start} of {len(pictures)} pictures")
        progress(start, len(pictures))
        block = pictures[start : start + BLOCK]
        path = _place(encoder, block, wanted)
        features = _kept(path, len(block))
        if features is None:
            features = np.concatenate(
                [_encode(encoder, block[at : at + BATCH], wanted) for at in range(0, len(block), BATCH)]
            )
            keeps = keeps and _keep(features, path)
        found.append(features)
    progress(len(pictures), len(pictures))
    return np.concatenate(found)


def pool(features: np.ndarray, how: str) -> np.ndarray:
    """(n, 1 + cells, hidden) -> (n, hidden), or (n, 2 * hidden) for "both": class token, mean of patches, or both."""
    cls, mean = features[:, 0], features[:, 1:].mean(1)
    if how not in POOLS:
        raise ValueError(f'pool is "{how}"; known: {", ".join(POOLS)}')
    return {"cls": cls, "mean": mean}.get(how, np.concatenate([cls, mean], axis=1))


def _place(encoder: Encoder, pictures: Sequence[Picture], wanted: Wanted) -> Path:
    """The file of a block of pictures."""
    facts = [[_identity(picture.source) for picture in pictures], wanted.__dict__]
    name = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    root = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/mini-internvl").expanduser()
    return root / "probe" / encoder.key / f"{name}.safetensors"


def _kept(path: Path, count: int) -> np.ndarray | None:
    """The features of so many pictures; ``None`` where they are not there, or damaged."""
    if not path.is_file():
        return None
    try:
        kept: np.ndarray = dict(read_file(path))["features"].numpy()
    except (CheckpointError, KeyError):
        return None
    return kept if len(kept) == count else None


def _keep(features: np.ndarray, path: Path) -> bool:
    """Whether they could be kept; where not, such as on a full disk, that is told, and they serve this call alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path, flush=False) as draft:
            write_file({"features": torch.from_numpy(features)}, draft)
    except OSError as error:
        _log.warning(
            "features are not kept (%s); the call goes on; delete %s or set %s", error, path.parents[1], CACHE_VARIABLE
        )
        return False
    return True


@torch.inference_mode()
def _encode(encoder: Encoder, pictures: Sequence[Picture], wanted: Wanted) -> np.ndarray:
    tiles = torch.cat([_tile(picture, wanted) for picture in pictures])
    model, taken = encoder.model, dict[int, Tensor]()
    x = model.embeddings(tiles.to(model.embeddings.class_embedding.device, model.dtype))
    for number in range(max(wanted.layers) + 1):  # one state at a time: all of a batch would fill memory
        if number in wanted.layers:
            taken[number] = _cells(x.float(), wanted.grid).cpu()
        if number < max(wanted.layers):
            x = model.encoder.layers[number](x)
    return torch.stack([taken[layer] for layer in wanted.layers], dim=1).numpy()


def _cells(state: Tensor, grid: int) -> Tensor:
    """(N, 1 + patches, hidden) -> (N, 1 + grid * grid, hidden)."""
    side = round((state.shape[1] - 1) ** 0.5)
    patches = state[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    cells = F.adaptive_avg_pool2d(patches, grid).flatten(2).transpose(1, 2)
    return torch.cat([state[:, :1], cells], dim=1)


def _tile(picture: Picture, wanted: Wanted) -> Tensor:
    """(1, 3, S, S), normalised."""
    image = picture.load()
    if wanted.view:
        draws = np.random.default_rng([wanted.view, *hashlib.sha256(picture.id.encode()).digest()[:8]])
        share, left, top, bright = draws.uniform((0.7, 0, 0, 0.7), (0.95, 1, 1, 1.3))
        width, height = max(1, round(image.width * share)), max(1, round(image.height * share))
        x, y = round(left * (image.width - width)), round(top * (image.height - height))
        image = image.crop((x, y, x + width, y + height)).point(lambda value: min(255, value * bright))
    return normalise(split_tiles(image, TileConfig(image_size=wanted.size, max_tiles=1, use_thumbnail=False)))


def _identity(source: Any) -> list[Any]:
    """What tells an image from others without decoding it."""
    if isinstance(source, Drawn):
        return list(source)
    if isinstance(source, bytes) or (isinstance(source, str) and source.startswith("data:")):
        content = source.encode() if isinstance(source, str) else source
        return [hashlib.blake2b(content, digest_size=16).hexdigest()]
    try:
        facts = os.stat(source)
    except (OSError, ValueError):  # reading it will say why
        return [os.fspath(source)]
    return [os.path.abspath(source), facts.st_size, facts.st_mtime_ns]
