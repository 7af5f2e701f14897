"""Files of a checkpoint folder: read with clear errors, written whole or not at all.

Weights are memory-mapped safetensors, one file or shards with an index. Pickle files are refused by name, since loading
one runs code. A folder is written beside its place under a temporary name, flushed to disk and renamed; what a kill
leaves behind is cleared away by the next save.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHARD_BYTES = 5_000_000_000
"""Largest file of a saved checkpoint, as in the released 4B."""


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be read; the message names the file and the remedy."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError names the file when it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint folder?") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch the file again")
    return value


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
        missing = [name for name in names if not (folder / name).exists()]
        if missing or not names:
            raise CheckpointError(
                f"{folder / INDEX} names {missing or 'no files'}, not in the folder; fetch them again"
            )
        return [folder / name for name in names]
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder / pickled[0]} is a pickle file, which can run code when loaded; convert it to safetensors first"
        )
    raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}")


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder under its own name, memory-mapped."""
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                for key in names:
                    yield key, file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or incomplete ({error}); fetch or save it again") from None


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
        _save(held, folder / f"{len(shards)}.part", header)
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # a cut of a larger one: safetensors writes whole storages only
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
    write_json(index, folder / INDEX)
    return [folder / name for name in names]


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata=dict(metadata))


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write a JSON object, readable and in UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` when the block ends without an error.

    What earlier saves of processes that are gone have left beside it is removed first. A link is followed.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f"{_prefix(folder)}{os.getpid()}-", dir=folder.parent))
    try:
        yield temporary
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(folder: Path) -> None:
    """CheckpointError when the folder exists and is not empty: nothing that people keep is ever replaced unasked."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; give a new folder")


def _prefix(folder: Path) -> str:
    """Begin of the temporary names of this computer; other computers may share the disk."""
    return f".{folder.name}.{socket.gethostname()}-"


def _clear_leftovers(folder: Path) -> None:
    for path in folder.parent.glob(f"{glob.escape(_prefix(folder))}*"):
        number = re.match(r"(\d+)-", path.name.removeprefix(_prefix(folder)))
        if number and not _runs(int(number[1])):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    if os.name == "nt":
        return True  # there is no harmless way to ask
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def replace_folder(temporary: Path, folder: Path) -> None:
    """Put a finished temporary folder in the place of ``folder``, flushed to disk first."""
    for path in temporary.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    temporary.chmod(0o755)
    _sync_folder(temporary)
    recover_folder(folder)
    old = _old(folder)
    for last in (False, True):
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(temporary, folder)
            break
        except OSError:  # a reader may have put the old folder back in between: once more then
            recover_folder(folder)
            if last:
                raise
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def recover_folder(folder: Path) -> None:
    """Put the old folder back when a kill fell between the two renames of :func:`replace_folder`."""
    folder = folder.resolve()
    if not folder.exists() and _old(folder).exists():
        with suppress(FileNotFoundError):  # another process was quicker
            os.replace(_old(folder), folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
