"""The quantised form that lies beside a model, and whether it answers in the model's place.

``minivl quantize MODEL`` writes it into the model's own folder, with what it was made of and how long both took. It
answers on a CPU where it was faster and agreed, while the model is still the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mini_internvl.engine import hub
from mini_internvl.engine.backends import openvino
from mini_internvl.engine.device import resolve_device
from mini_internvl.files import file_hash, read_object
from mini_internvl.model.heads import SETTINGS as HEADS

OWN = "own"
"""The back end that answers with a folder's own weights: OpenVINO for a quantised one, else torch."""
FOLDER = "openvino"
"""Of a quantised model, inside its model's."""
MADE_OF, SECONDS = "made_of", "seconds_to_answer"
"""Keys of its facts: :func:`made_of`, and seconds by "plain" and "quantised" for the same pictures and tokens."""
FILES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})  # that decide what a model answers


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Which folder answers, by which back end, and what a person is told of it."""

    folder: Path
    backend: str
    note: str = ""


def choose(folder: Path, backend: str, *, dtype: str = "auto", device: str = "auto") -> Answering:
    """What answers for a model: the back end of that name, or with "auto" the faster one."""
    if backend not in ("auto", OWN):
        return Answering(folder=folder, backend=backend)
    own = Answering(folder=folder, backend="openvino" if openvino.is_quantised(folder) else "torch")
    small, has_heads = folder / FOLDER, (folder / HEADS).exists()
    if backend == OWN or dtype != "auto" or has_heads or not openvino.is_quantised(small):
        return own
    if resolve_device(device).type != "cpu":
        return own
    facts = read_object(small / openvino.FACTS)
    if not _is_made_of(facts.get(MADE_OF, {}), folder):
        again = f"write it again: minivl quantize {folder}"
        return replace(own, note=f"{small} was made of other files and is left out; {again}")
    seconds = facts[SECONDS]
    times = seconds["plain"] / seconds["quantised"]
    if times <= 1 or facts["problem"]:
        return own
    if problem := openvino.missing():
        return replace(own, note=f"{small} would answer {times:.1f} times as fast: {problem}")
    note = f"OpenVINO answers with int{facts['bits']} weights, {times:.1f} times as fast when it was measured"
    return Answering(folder=small, backend="openvino", note=f"{note}; --backend torch takes the model as it is")


def made_of(folder: Path) -> dict[str, Any]:
    """What tells whether a model is still the same: sizes and times of its files, and their SHA-256."""
    files = _files(folder)
    return {"files": _stamps(files), "sha256": file_hash(*files)}


def _files(folder: Path) -> list[Path]:
    """Of a checkpoint, or of an adapter and its base."""
    folders = dict.fromkeys((folder, hub.base_folder(folder)))
    return [path for own in folders for path in sorted(own.iterdir()) if path.suffix in FILES]


def _stamps(files: list[Path]) -> list[list[int]]:
    return [[(facts := path.stat()).st_size, facts.st_mtime_ns] for path in files]


def _is_made_of(told: Mapping[str, Any], folder: Path) -> bool:
    """By sizes and times; a copied folder, whose times differ, by its bytes."""
    files = _files(folder)
    return told.get("files") == _stamps(files) or told.get("sha256") == file_hash(*files)
