"""Weight files of a checkpoint folder: memory-mapped safetensors, one file or shards with an index.

Pickle files are refused by name, since loading one runs code. Files are opened and written by ``mini_internvl.files``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mini_internvl.files import FileError, check_file, read_object, write_json
from mini_internvl.model.stream import write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHARD_BYTES = 5_000_000_000
"""Largest file of a saved checkpoint, as in the released 4B."""


TYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}
"""Types that weights may have: safetensors' name -> torch's."""


class CheckpointError(FileError):
    """A checkpoint folder that cannot be read; the message names the file and the remedy."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError names the file when it is missing or broken."""
    if not path.exists():
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint folder?")
    return read_object(path, error=CheckpointError)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, checked to be there.

    Raises:
        CheckpointError: none found, a shard of the index is missing, or the weights are pickled.
    """
    if (folder / INDEX).exists():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise CheckpointError(f"{folder / INDEX} has no map from tensors to files; fetch it again")
        names = sorted(set(places.values()))
        outside = [name for name in names if not stays_inside(name)]
        if outside:
            raise CheckpointError(
                f"{folder / INDEX} names {outside[0]!r:.200}, outside the folder; put the weights beside the index"
            )
        missing = [name for name in names if not (folder / name).exists()]
        if missing or not names:
            raise CheckpointError(
                f"{folder / INDEX} names {missing or 'no files'}, not in the folder; fetch them again"
            )
        for name in names:
            check_file(folder / name, error=CheckpointError)
        return [folder / name for name in names]
    if (folder / WEIGHTS).exists():
        check_file(folder / WEIGHTS, error=CheckpointError)
        return [folder / WEIGHTS]
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder / pickled[0]} is a pickle file, which can run code when loaded; convert it to safetensors first"
        )
    raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}")


def stays_inside(name: str) -> bool:
    """Whether a name of an index is of a file in the folder, or below it."""
    place = PurePath(name)
    return bool(name) and not place.is_absolute() and ".." not in place.parts and "\\" not in name and "\0" not in name


def read_tensors(folder: Path, *, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder under its own name, memory-mapped; with ``shapes_only`` empty, on the meta device."""
    for path in weight_files(folder):
        yield from read_file(path, shapes_only=shapes_only)


def read_file(path: Path, *, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a safetensors file; see :func:`read_tensors`.

    Raises:
        CheckpointError: the file is missing, no regular file, damaged, or holds other numbers than real ones.
    """
    check_file(path, error=CheckpointError)
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()  # a safetensors file is no mapping
            for key in keys:
                part = file.get_slice(key)
                if part.get_dtype() not in TYPES:
                    kind = part.get_dtype()
                    raise CheckpointError(f"{path}: {key:.200} is of type {kind}; save the weights as real numbers")
                yield key, _empty(part) if shapes_only else file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); fetch or save it again") from None


def _empty(part: Any) -> Tensor:
    """A tensor without memory, of the type and shape that a file's header gives."""
    import torch

    return torch.empty(part.get_shape(), dtype=getattr(torch, TYPES[part.get_dtype()]), device="meta")


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
    header = {"format": "pt", **(metadata or {})}

    def flush() -> None:
        write_safetensors(held, folder / f"{len(shards)}.part", header)
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        if held and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(shards) == 1:
        os.replace(folder / "0.part", folder / WEIGHTS)
        return [folder / WEIGHTS]
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for i, name in enumerate(names):
        os.replace(folder / f"{i}.part", folder / name)
    places = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_json(folder / INDEX, index)
    return [folder / name for name in names]
