"""Weight files of a checkpoint folder: safetensors, read memory-mapped and written one tensor at a time.

Pickle files are refused by name, since loading one runs code. A safetensors file is 8 bytes of length (little endian),
that many bytes of JSON, then the tensors' bytes, each between the two offsets that the JSON gives.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mini_internvl.files import LFS_POINTER, FileError, check_file, read_object, write_json
from mini_internvl.model.fields import listed

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
ADAPTER = "adapter_config.json"
QUANTISED = "openvino.json"  # what ``minivl quantize`` says of the folder that it wrote
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHARD_BYTES = 5_000_000_000  # largest file of a saved checkpoint, as in the released 4B
MAX_HEADER = 100_000_000  # longest header in bytes that safetensors itself accepts
REAL = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
"""Types that weights may have, by safetensors' names; ``NAMES`` holds all that can be written."""
NAMES = {dtype: name for name, dtype in REAL.items()} | {
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}


class CheckpointError(FileError):
    """A checkpoint folder that cannot be read; the message names the file and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor as its file's header describes it, with safetensors' name of the type, such as "BF16"."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError names the file when it is missing or broken."""
    if not path.exists():
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint folder?")
    return read_object(path, error=CheckpointError)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; CheckpointError where none is found, one is missing, or they are pickled."""
    if (folder / INDEX).exists():
        return _indexed_files(folder)
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / QUANTISED).exists():
        what = "was written by minivl quantize and only answers, through OpenVINO"
        raise CheckpointError(f"{folder} {what}; give the checkpoint that its {QUANTISED} names")
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickled:
        raise pickle_error(folder / pickled[0])
    raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}; fetch the safetensors files")


def pickle_error(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is a pickle file, which can run code when loaded; convert it to safetensors first")


def _indexed_files(folder: Path) -> list[Path]:
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{folder / INDEX} has no map from tensors to files; fetch it again")
    names = sorted(set(places.values()))
    if not names:
        raise CheckpointError(f"{folder / INDEX} names no files; fetch the index again")
    for name in names:
        place = PurePath(name)
        if not name or place.is_absolute() or ".." in place.parts or "\\" in name or "\0" in name:
            raise CheckpointError(
                f"{folder / INDEX} names {name!r:.200}, outside the folder; put the weights beside the index"
            )
    if missing := [name for name in names if not (folder / name).exists()]:
        what = f"names shards that are missing: {listed(missing)}; fetch these files as well"
        raise CheckpointError(f"{folder / INDEX} {what}")
    return [folder / name for name in names]


def read_tensors(folder: Path, *, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder under its own name, memory-mapped; with ``shapes_only`` empty, on the meta device."""
    for path in weight_files(folder):
        yield from read_file(path, shapes_only=shapes_only)


def read_file(path: Path, *, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a safetensors file; see :func:`read_tensors`. Other than real numbers are refused."""
    check_file(path, error=CheckpointError)
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()  # a safetensors file is no mapping
            for key in keys:
                part = file.get_slice(key)
                kind = part.get_dtype()
                if kind not in REAL:
                    raise CheckpointError(f"{path}: {key:.200} is of type {kind}; save the weights as real numbers")
                if shapes_only:
                    yield key, torch.empty(part.get_shape(), dtype=REAL[kind], device="meta")
                else:
                    yield key, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); fetch or save it again") from None


def read_header(path: Path) -> dict[str, Stored]:
    """Name -> type and shape of a file's tensors, checked against the file's length; no weight is read."""
    size = check_file(path, error=CheckpointError)
    try:
        with path.open("rb") as file:
            begin = file.read(len(LFS_POINTER))
            length = int.from_bytes(begin[:8], "little")
            file.seek(8)
            text = file.read(length) if length <= min(size - 8, MAX_HEADER) else b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); fetch it again") from None
    if begin == LFS_POINTER:
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run git lfs pull")
    if size < 8 or length > size - 8:
        if begin[:1] in (b"<", b"{"):
            raise CheckpointError(f"{path} is a text file, not weights (a saved error page?); fetch it again")
        raise CheckpointError(f"{path} is cut off inside its header, at {size:,} bytes; fetch or save it again")
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} is no safetensors file; fetch it again")
    try:
        tensors, end = _parse(text)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has a damaged header ({type(error).__name__}: {error}); fetch it again"
        ) from None
    held = size - 8 - length
    if held < end:
        raise CheckpointError(f"{path} is cut off: {held:,} of {end:,} bytes of weights; fetch or save it again")
    if held > end:
        raise CheckpointError(f"{path} is {held - end:,} bytes longer than its header says; fetch or save it again")
    return tensors


def _parse(text: bytes) -> tuple[dict[str, Stored], int]:
    """Tensors of a header, and the number of bytes that they take."""
    tensors, end = {}, 0
    for name, row in json.loads(text).items():
        if name == "__metadata__":
            continue
        begin, stop = map(int, row["data_offsets"])
        tensors[name] = Stored(dtype=str(row["dtype"]), shape=tuple(map(int, row["shape"])))
        if not 0 <= begin <= stop or any(length < 0 for length in tensors[name].shape):
            raise ValueError(f"{name} has impossible offsets or lengths")
        end = max(end, stop)
    return tensors, end


def write_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; tensors may be on any device and share storage.

    Unlike ``safetensors.torch.save_file`` nothing is copied as a whole in memory, equal contents give equal bytes
    (there the metadata stands in random order), and a full disk is an OSError.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # wide types first: all aligned
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        dtype, shape = NAMES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(flat.numpy().data)


def write_tensors(
    tensors: Iterable[tuple[str, Tensor]],
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write tensors as one file, or as shards of at most ``shard_bytes`` with an index; a shard is held at a time."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        write_file(held, folder / f"{len(shards)}.part", {"format": "pt", **(metadata or {})})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = tensor.detach().cpu()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else [WEIGHTS]
    for i, name in enumerate(names):
        os.replace(folder / f"{i}.part", folder / name)
    if count > 1:
        places = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / INDEX, index)
    return [folder / name for name in names]
