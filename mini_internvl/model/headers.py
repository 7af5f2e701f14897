"""Headers of safetensors files: names, types and shapes of all tensors, and whether the file is whole.

No weight is read. The format: 8 bytes of length (little endian), that many bytes of JSON, then the tensors' bytes, each
between the two offsets that the JSON gives.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mini_internvl.files import check_file
from mini_internvl.model.files import CheckpointError

MAX_HEADER = 100_000_000
"""Longest header in bytes that safetensors itself accepts."""
POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has not fetched."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor as its header describes it."""

    dtype: str
    """safetensors' name of the type, for instance "BF16"."""
    shape: tuple[int, ...]
    """Lengths of the axes."""

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Header:
    """One file's header."""

    tensors: Mapping[str, Stored]
    """Name -> type and shape."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Free texts of the writer."""


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against the file's length.

    Raises:
        CheckpointError: the file is cut off, longer than its header says, or no safetensors file at all.
    """
    size = check_file(path, error=CheckpointError)
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(length) if 8 + length <= size and length <= MAX_HEADER else b""
            file.seek(0)
            begin = file.read(len(POINTER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); fetch it again") from None
    if begin == POINTER:
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run git lfs pull")
    if size < 8 or length > size - 8:
        if begin[:1] in (b"<", b"{"):
            raise CheckpointError(f"{path} is a text file, not weights (a saved error page?); fetch it again")
        raise CheckpointError(f"{path} is cut off inside its header, at {size:,} bytes; fetch or save it again")
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} is no safetensors file; fetch it again")
    tensors, end, metadata = _parse(text, path)
    held = size - 8 - length
    if held < end:
        raise CheckpointError(f"{path} is cut off: {held:,} of {end:,} bytes of weights; fetch or save it again")
    if held > end:
        raise CheckpointError(f"{path} is {held - end:,} bytes longer than its header says; fetch or save it again")
    return Header(tensors=tensors, metadata=metadata)


def _parse(text: bytes, path: Path) -> tuple[dict[str, Stored], int, dict[str, str]]:
    """Tensors, number of bytes they take, metadata."""
    try:
        raw = json.loads(text)
        extra = raw.pop("__metadata__", None)
        metadata = {str(key): str(value) for key, value in (extra or {}).items()}
        tensors, end = {}, 0
        for name, row in raw.items():
            begin, stop = map(int, row["data_offsets"])
            tensors[name] = Stored(dtype=str(row["dtype"]), shape=tuple(map(int, row["shape"])))
            if not 0 <= begin <= stop or any(length < 0 for length in tensors[name].shape):
                raise ValueError(f"{name} has impossible offsets or lengths")
            end = max(end, stop)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has a damaged header ({type(error).__name__}: {error}); fetch it again"
        ) from None
    return tensors, end, metadata
