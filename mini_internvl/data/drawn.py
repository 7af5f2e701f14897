"""Drawn samples as files: images and rows, for training with other tools or for looking at.

One ``<kind>-<split>.jsonl`` for each kind, images under ``images/``, and InternVL's meta JSON ``<split>.json`` that
names them all. A run that was cut off goes on where it stopped, because sample ``i`` is the same on every run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mini_internvl import files, synth
from mini_internvl.data.rows import row_line


def write(
    kinds: str | Sequence[str],
    count: int,
    folder: str | Path,
    *,
    seed: int = 0,
    split: str = "train",
    progress: Callable[[str, int, int], None] = lambda kind, done, wanted: None,
) -> Path:
    """Write ``count`` samples of each kind into the folder and return the meta file; samples there already are kept.

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
        path = root / f"{name}-{split}.jsonl"
        done = _done(path, f"{name}-{split}-{seed}", seed)
        with path.open("a", encoding="utf-8", newline="\n") as handle:
            for index in range(done, count):
                handle.write(row_line(synth.make(name, seed, index, split), root, f"images/{path.stem}/{index:06d}"))
                handle.flush()
                progress(name, index + 1, count)
        meta[f"synth-{name}"] = {
            "root": str(root),
            "annotation": str(path),
            "data_augment": False,
            "max_dynamic_patch": synth.MAX_TILES,
            "repeat_time": 1,
            "length": max(done, count),
        }
        files.write_json(meta_path, meta)
    return meta_path


def _done(path: Path, series: str, seed: int) -> int:
    """Complete lines of a file of rows, checked to be those of this run; a half-written last line is cut off."""
    if not path.exists():
        return 0
    files.drop_half_line(path)
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines):
        try:
            found = json.loads(line)["id"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}:{number + 1}: not a sample; delete the file or choose another folder") from None
        if found != f"{series}-{number}":
            raise ValueError(
                f"{path}:{number + 1}: sample {found!r} is of another run (wanted seed {seed}); "
                "choose another folder or the same seed"
            )
    return len(lines)
