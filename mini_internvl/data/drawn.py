"""Drawn samples as files: images and rows, for training with other tools or for looking at.

One ``<kind>-<split>.jsonl`` for each kind, images under ``images/``, and InternVL's meta JSON ``<split>.json`` that
names them all. A run that was cut off goes on where it stopped, because sample ``i`` is the same on every run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mini_internvl import files, synth
from mini_internvl.data.rows import row_line

Progress = Callable[[str, int, int], None]
"""Called with the kind, the samples written so far and the samples wanted."""


def write(
    kinds: str | Sequence[str],
    count: int,
    folder: str | Path,
    *,
    seed: int = 0,
    split: str = "train",
    progress: Progress | None = None,
) -> Path:
    """Write ``count`` samples of each kind into the folder; samples that are there already are kept.

    Returns:
        The meta file.

    Raises:
        ValueError: an unknown kind, a negative count, or the folder holds samples of another seed.
        ModuleNotFoundError: a kind's data is missing.
    """
    if count < 0:
        raise ValueError(f"count is {count}; give the number of samples wanted of each kind, 0 or more")
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    root = Path(folder)
    for name in names:
        synth.make(name, seed, 0, split)
    root.mkdir(parents=True, exist_ok=True)
    meta_path = root / f"{split}.json"
    meta = files.read_object(meta_path) if meta_path.exists() else {}
    for name in names:
        lines = _write_kind(name, count, root, seed, split, progress)
        meta[f"synth-{name}"] = {
            "root": str(root),
            "annotation": str(root / f"{name}-{split}.jsonl"),
            "data_augment": False,
            "max_dynamic_patch": synth.MAX_TILES,
            "repeat_time": 1,
            "length": lines,
        }
        files.write_json(meta_path, meta)
    return meta_path


def _write_kind(kind: str, count: int, folder: Path, seed: int, split: str, progress: Progress | None) -> int:
    """Write the missing samples of one kind and return how many lines the file then has."""
    path = folder / f"{kind}-{split}.jsonl"
    done = _done(path, kind, seed, split)
    with path.open("a", encoding="utf-8", newline="\n") as handle:
        for index in range(done, count):
            handle.write(row_line(synth.make(kind, seed, index, split), folder, f"images/{path.stem}/{index:06d}"))
            handle.flush()
            if progress is not None:
                progress(kind, index + 1, count)
    return max(done, count)


def _done(path: Path, kind: str, seed: int, split: str) -> int:
    """Complete lines of a file of rows; a half-written last line is cut off.

    Raises:
        ValueError: the file holds other samples than this run would write.
    """
    if not path.exists():
        return 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    lines = whole.splitlines()
    for number, line in enumerate(lines):
        try:
            found = json.loads(line)["id"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}:{number + 1}: not a sample; delete the file or choose another folder") from None
        if found != f"{kind}-{split}-{seed}-{number}":
            raise ValueError(
                f"{path}:{number + 1}: sample {found!r} is of another run (wanted seed {seed}); "
                "choose another folder or the same seed"
            )
    return len(lines)
