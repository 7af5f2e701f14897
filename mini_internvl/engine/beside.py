"""The quantised form that lies beside a model, and whether it answers in the model's place.

``minivl quantize MODEL`` writes it into the model's own folder, with what it was made of and how long both took. It
answers on a CPU where it was faster and agreed, while the model is still the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mini_internvl.engine import hub
from mini_internvl.engine.backends import openvino
from mini_internvl.engine.device import resolve_device
from mini_internvl.files import file_hash, read_object
from mini_internvl.inputs.tokenizer_files import FILES
from mini_internvl.model.files import ADAPTER, CONFIG, INDEX, CheckpointError
from mini_internvl.model.heads import SETTINGS as HEADS

OWN = "own"
"""The back end that answers with a folder's own weights: OpenVINO for a quantised one, else torch."""
FOLDER = "openvino"
"""Of a quantised model, inside its model's."""
MADE_OF = "made_of"
"""Key of its facts: see :func:`made_of`."""
PLAIN, QUANTISED = "plain", "quantised"
"""The two sides, by which its facts give the seconds for the same pictures and tokens."""
LEAST_TIMES = 1.2  # as fast as the model it must have been to answer in its place
SLOWER = f"the quantised form agrees too little, or was not {LEAST_TIMES} times as fast"
NAMES = frozenset({CONFIG, ADAPTER, INDEX, *FILES})
"""Files that, beside the weights, decide what a model answers."""


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
    again = f"write it again: minivl quantize {folder}"
    try:
        facts = read_object(small / openvino.FACTS)
        openvino.check_files(small)
        seconds, bits, problem, files = facts["agreement"]["seconds"], facts["bits"], facts["problem"], facts[MADE_OF]
        times = seconds[PLAIN] / seconds[QUANTISED]
        if problem or times < LEAST_TIMES:
            return own
        if absent := openvino.missing():
            return replace(own, note=f"{small} would answer {times:.1f} times as fast: {absent}")
        if not _is_made_of(files, folder):
            return left_out(own, f"{small} was made of other files; {again}")
    except CheckpointError:
        raise  # the model's own base is missing
    except ValueError as error:
        return left_out(own, error)
    except (KeyError, TypeError, ZeroDivisionError):
        return left_out(own, f"{small / openvino.FACTS} does not say how fast it is and of what it was made; {again}")
    note = f"OpenVINO answers with int{bits} weights, {times:.1f} times as fast when it was measured"
    return Answering(folder=small, backend="openvino", note=f"{note}; --backend torch takes the model as it is")


def left_out(own: Answering, why: object) -> Answering:
    """The model itself, with why its quantised form does not answer."""
    return replace(own, note=f"the quantised form is left out: {why}")


def made_of(folder: Path) -> dict[str, Any]:
    """What tells whether a model is still the same: sizes and times of its files, and their SHA-256."""
    files = _files(folder)
    return {"sizes": _sizes(files), "times": [path.stat().st_mtime_ns for path in files], "sha256": file_hash(*files)}


def _files(folder: Path) -> list[Path]:
    """Of a checkpoint, or of an adapter and its base."""
    folders = dict.fromkeys((folder, hub.base_folder(folder)))
    found = [path for own in folders for path in sorted(own.iterdir())]
    return [path for path in found if path.suffix == ".safetensors" or path.name in NAMES]


def _sizes(files: Sequence[Path]) -> list[list[Any]]:
    return [[path.name, path.stat().st_size] for path in files]


def _is_made_of(told: Mapping[str, Any], folder: Path) -> bool:
    """By names, sizes and times; a copied folder, whose times differ, by its bytes."""
    files = _files(folder)
    if told["sizes"] != _sizes(files):
        return False
    return told["times"] == [path.stat().st_mtime_ns for path in files] or told["sha256"] == file_hash(*files)
