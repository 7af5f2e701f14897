"""Writes drawn samples as images and InternVL-style JSON lines, for training with other tools or for looking at.

One ``<kind>-<split>.jsonl`` for each kind, images under ``images/``, and a meta file ``<split>.json`` that names them
all. A run that was cut off goes on where it stopped, because sample ``i`` is the same on every run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..records import Sample
from . import MAX_TILES, make

Progress = Callable[[str, int, int], None]
"""Called with the kind, the samples written so far and the samples wanted."""


def row(sample: Sample, path: str) -> dict[str, Any]:
    """One line of the annotation file; ``path`` is that of the image, relative to the folder."""
    content = sample.messages[0]["content"]
    assert not isinstance(content, str), "the first turn carries the picture"
    image = content[0]["image"]
    turns = []
    for message in sample.messages:
        said = message["content"]
        text = said if isinstance(said, str) else "<image>\n" + said[1]["text"]
        turns.append({"from": "human" if message["role"] == "user" else "gpt", "value": text})
    stated = {"image": path, "width": image.width, "height": image.height}
    return {"id": sample.id, **stated, "independent": sample.independent, "conversations": turns}


def _done(path: Path, kind: str, seed: int, split: str) -> int:
    """Complete lines of an annotation file; a half-written last line is cut off.

    Raises ValueError when the file holds other samples than this run would write.
    """
    if not path.exists():
        return 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    lines = whole.splitlines()
    for i, line in enumerate(lines):
        try:
            found = json.loads(line)["id"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path}, line {i + 1}: not a sample; delete the file or choose another folder") from None
        if found != f"{kind}-{split}-{seed}-{i}":
            raise ValueError(f"{path}, line {i + 1}: sample {found!r} is of another run (wanted seed {seed}); "
                             "choose another folder or the same seed")  # fmt: skip
    return len(lines)


def _write_kind(kind: str, count: int, folder: Path, seed: int, split: str, progress: Progress | None) -> int:
    """Writes the missing samples of one kind; returns how many lines the file then has."""
    path = folder / f"{kind}-{split}.jsonl"
    images = folder / "images" / f"{kind}-{split}"
    images.mkdir(parents=True, exist_ok=True)
    done = _done(path, kind, seed, split)
    with path.open("a", encoding="utf-8", newline="\n") as handle:
        for index in range(done, count):
            sample = make(kind, seed, index, split)
            name = images / f"{index:06d}.png"
            content = sample.messages[0]["content"]
            assert not isinstance(content, str), "the first turn carries the picture"
            content[0]["image"].save(name, compress_level=4)
            handle.write(json.dumps(row(sample, name.relative_to(folder).as_posix()), ensure_ascii=False) + "\n")
            handle.flush()
            if progress is not None:
                progress(kind, index + 1, count)
    return max(done, count)


def write(kinds: str | Sequence[str], count: int, folder: str | Path, *, seed: int = 0, split: str = "train",
          progress: Progress | None = None) -> Path:  # fmt: skip
    """Writes ``count`` samples of each kind into the folder and returns the meta file (facts: InternVL ``meta`` json).

    Existing samples of the same seed are kept and not drawn again. Raises ValueError for unknown kinds, for a negative
    count and for a folder that holds samples of another seed; ModuleNotFoundError where a kind's data is missing.
    """
    if count < 0:
        raise ValueError(f"count is {count}; give the number of samples wanted of each kind, 0 or more")
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    root = Path(folder)
    for name in names:
        make(name, seed, 0, split)
    root.mkdir(parents=True, exist_ok=True)
    meta_path = root / f"{split}.json"
    meta = json.loads(meta_path.read_text(encoding="utf-8")) if meta_path.exists() else {}
    for name in names:
        lines = _write_kind(name, count, root, seed, split, progress)
        meta[f"synth-{name}"] = {
            "root": str(root), "annotation": str(root / f"{name}-{split}.jsonl"), "data_augment": False,
            "max_dynamic_patch": MAX_TILES, "repeat_time": 1, "length": lines,
        }  # fmt: skip
        temporary = meta_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(meta_path)
    return meta_path
