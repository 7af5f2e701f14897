"""The frozen encoder whose features a student learns, and what its features are scaled by."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mini_internvl import __version__
from mini_internvl.engine.device import resolve_device
from mini_internvl.inputs.tiles import normalise
from mini_internvl.model.checkpoint import as_dtype, load_vision, read_vision_config, vision_tensors
from mini_internvl.model.config import VisionConfig
from mini_internvl.model.sizes import shapes_only
from mini_internvl.model.vision import InternViT
from mini_internvl.recipes import RecipeError
from mini_internvl.train.student import encoder_folder, known_config

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class Teacher(nn.Module):
    """An InternViT that never trains; its weights are read when they are first needed, and it computes in their type
    whatever the student trains in."""

    def __init__(self, name: str, *, count: int, dtype: str = "fp32", device: str = "") -> None:
        """``count`` is of its last hidden states; ``device`` is the student's when empty."""
        super().__init__()
        self.name, self.count, self.dtype, self.asked = name, count, as_dtype(DTYPES[dtype]), device
        self.device = torch.device("meta")
        self.config = VisionConfig.from_official(known_config(name))
        with shapes_only():
            self.vision = InternViT(self.config).to(self.dtype)

    def place(self, device: torch.device) -> Teacher:
        """Where it will run: ``device``, if it was not told another; on ``meta`` it has shapes alone.

        RecipeError where this computer has no such device.
        """
        self.device = device
        if self.asked and device.type != "meta":
            try:
                self.device = resolve_device(self.asked)
            except ValueError as error:
                raise RecipeError(f"features.teacher_device: {error}") from None
        return self

    def key(self, form: str) -> str:
        """Of its weights and arithmetic, of which of its hidden states are given, and of how they are kept."""
        facts = [__version__, weights_hash(self.name), str(self.dtype), self.device.type, self.count, form]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()

    @torch.no_grad()
    def states(self, tiles: Tensor) -> list[Tensor]:
        """(N, S, S, 3) uint8 -> its last hidden states, each (N, 1 + patches, width), where the tiles are."""
        if self.vision.embeddings.class_embedding.device.type == "meta" != self.device.type:
            found = load_vision(encoder_folder(self.name), dtype=self.dtype, device=str(self.device))
            self.vision = found.requires_grad_(False).eval()
        here = self.vision.embeddings.class_embedding.device
        with exactly(here):
            pixels = normalise(tiles.to(here)).to(self.dtype)
            return [state.to(tiles.device) for state in self.vision.last_states(pixels, self.count)]


def exactly(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, autocast changes no type; on ``meta`` there is none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def weights_hash(name: str) -> str:
    """Of an encoder's config.json and weights, by their folder or hub id; files are read once while they stay."""
    folder = encoder_folder(name)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    return _weights_hash(folder, tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=8)
def _weights_hash(folder: Path, facts: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.blake2b(repr(VisionConfig.from_official(read_vision_config(folder))).encode(), digest_size=16)
    for key, tensor in sorted(vision_tensors(folder), key=lambda pair: pair[0]):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Normaliser(nn.Module):
    """Teacher features -> features in which every channel counts; the statistics are measured once, and kept.

    ``standardise`` takes the mean of each channel away and divides by its standard deviation. ``phi_s`` (PHI-S,
    arXiv:2410.01680) takes the mean away, turns the features to their principal axes and from there by a Hadamard
    matrix, after which all channels have one variance, and divides by one scale: distances keep their proportions.
    """

    def __init__(self, kind: str, pairs: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind != "none":
            self.mean: Tensor
            self.register_buffer("mean", torch.zeros(pairs, width))
        if kind == "standardise":
            self.deviation: Tensor
            self.register_buffer("deviation", torch.ones(pairs, width))
        if kind == "phi_s":
            self.turn: Tensor
            self.register_buffer("turn", torch.eye(width).repeat(pairs, 1, 1))
            hadamard(width)  # ValueError where there is none

    def forward(self, features: Tensor, pair: int) -> Tensor:
        """(..., width) of a pair of hidden states, float32."""
        features = features.float()
        if self.kind == "standardise":
            return (features - self.mean[pair]) / self.deviation[pair]
        if self.kind == "phi_s":
            return (features - self.mean[pair]) @ self.turn[pair].T
        return features

    @torch.no_grad()
    def measure(self, batches: Iterable[list[Tensor]]) -> int:
        """Measure the statistics of the hidden states of some pictures; how many tokens those were."""
        count, first, second = 0, list[Tensor](), list[Tensor]()
        for states in batches:
            for pair, state in enumerate(states):
                rows = (state.cpu() if state.device.type == "mps" else state).flatten(0, -2).double()
                if len(first) <= pair:
                    wide = rows.shape[-1]
                    first.append(rows.new_zeros(wide))
                    second.append(rows.new_zeros((wide, wide) if self.kind == "phi_s" else (wide,)))
                first[pair] += rows.sum(0)
                second[pair] += rows.T @ rows if self.kind == "phi_s" else rows.square().sum(0)
            count += len(rows)
        for pair in range(len(first)):
            self._settle(pair, first[pair] / count, second[pair] / count)
        return count

    def _settle(self, pair: int, mean: Tensor, square: Tensor) -> None:
        """From the means of values and of their products, float64."""
        self.mean[pair] = mean
        if self.kind == "standardise":
            variance = (square - mean.square()).clamp(min=0)
            least = variance.mean() * 1e-6  # a channel that never changes is not scaled up to noise
            self.deviation[pair] = variance.clamp(min=float(least) or 1.0).sqrt()
            return
        values, axes = torch.linalg.eigh(square - torch.outer(mean, mean))
        scale = values.clamp(min=0).mean().sqrt().clamp(min=1e-12)
        self.turn[pair] = hadamard(len(values)).to(axes) @ axes.T / scale


def hadamard(size: int) -> Tensor:
    """An orthogonal matrix whose entries all have one magnitude, float64: products of Sylvester's and Paley's.

    ValueError where no such product has this size: 192, 1024 and 3200 have one.
    """
    found = _hadamard(size)
    if found is None:
        raise ValueError(f"no Hadamard matrix of size {size} is known here; write normalise: standardise")
    return found / size**0.5


def _hadamard(size: int) -> Tensor | None:
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    for factor in [n for n in range(size, 1, -1) if size % n == 0]:
        own = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double() if factor == 2 else _paley(factor)
        rest = None if own is None else _hadamard(size // factor)
        if own is not None and rest is not None:
            return torch.kron(own, rest)
    return None


def _paley(size: int) -> Tensor | None:
    """Paley's matrix where ``size`` - 1, or ``size`` / 2 - 1, is a fitting prime number."""
    if size % 4:
        return None
    for prime, double in ((size - 1, False), (size // 2 - 1, True)):
        if prime > 2 and prime % 4 == (1 if double else 3) and all(prime % n for n in range(2, int(prime**0.5) + 1)):
            squares = {n * n % prime for n in range(1, prime)}
            signs = torch.tensor([0.0] + [1.0 if n in squares else -1.0 for n in range(1, prime)]).double()
            numbers = torch.arange(prime)
            core = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
            core[1:, 1:] = signs[(numbers[:, None] - numbers) % prime]
            core[0, 1:], core[1:, 0] = 1.0, 1.0 if double else -1.0
            one = torch.eye(prime + 1).double()
            if not double:
                return core + one
            two = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()
            return torch.kron(core, two) + torch.kron(one, torch.tensor([[1.0, -1.0], [-1.0, -1.0]]).double())
    return None
