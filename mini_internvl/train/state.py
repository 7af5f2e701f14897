"""Everything a stopped run needs to go on bit for bit: what it has trained, the optimiser, random state, counters.

Of the model only the parts are kept that the run has trained so far; the rest is the base, whose hash stands in the
counters. Kept as safetensors and JSON in one folder that is replaced as a whole, so that a kill at any moment leaves
either the old state or the new one. Tensors go to the file one by one, without a second copy in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mini_internvl.files import recover_folder
from mini_internvl.model.files import CheckpointError
from mini_internvl.model.vlm import InternVL

STATE, COUNTERS = "state.safetensors", "state.json"


def read_counters(folder: Path) -> dict[str, Any] | None:
    """The counters of a state folder, ``None`` when there is none; CheckpointError where they are damaged."""
    recover_folder(folder)
    if not folder.exists():
        return None
    path = folder / COUNTERS
    try:
        counters = json.loads(path.read_text(encoding="utf-8"))
        fits = isinstance(counters["stage"], str) and type(counters["step"]) is int and counters["step"] >= 0
    except (OSError, ValueError, TypeError, KeyError):
        fits = False
    if not fits or (counters["step"] and not (folder / STATE).exists()):
        raise CheckpointError(
            f"{folder} is damaged: {COUNTERS} or {STATE} is missing or unreadable; put the folder back, or give "
            "another run folder"
        )
    return dict(counters)


def tensors(learner: nn.Module, optimizer: torch.optim.Optimizer, kept: frozenset[str]) -> dict[str, Tensor]:
    """What a state holds: the model's parameters in ``kept``, all of the losses, the optimiser, the random state."""
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    moments = {
        f"optimizer.{key}.{names[id(parameter)]}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    device = next(learner.parameters()).device
    random = {f"random.{name}": value for name, value in random_state(device).items()}
    return {**_learned(learner, kept), **moments, **random}


def load_weights(folder: Path, model: InternVL, kept: frozenset[str]) -> None:
    """Put what a finished stage has trained into the model."""
    wanted = {f"model.{name}": value for name, value in model.named_parameters() if name in kept}
    _load(folder, wanted, ("model.",))


def load_state(folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, kept: frozenset[str]) -> None:
    """Put weights, the optimiser's tensors and the random state back."""
    _load(folder, _learned(learner, kept), ("model.", "loss."))
    parameters = dict(learner.named_parameters())
    random = {}
    for name, tensor in _read(folder):
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            key, _, parameter = rest.partition(".")
            optimizer.state[parameters[parameter]][key] = tensor.to(parameters[parameter].device)
        elif kind == "random":
            random[rest] = tensor
    set_random_state(random)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of the random numbers of the CPU and of the device that trains."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device | None = None) -> None:
    """Put back what :func:`random_state` gave; that of a device which is not there is left out."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"], device or "cuda")
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def _learned(learner: nn.Module, kept: frozenset[str]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in learner.state_dict(keep_vars=True).items()
        if name.startswith("loss.") or name.removeprefix("model.") in kept
    }


def _read(folder: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(folder / STATE, framework="pt") as file:
            names = file.keys()  # a safetensors file is no mapping
            for name in names:
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / STATE} is damaged ({error}); give another run folder") from None


def _load(folder: Path, wanted: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> None:
    """Copy the file's tensors of these prefixes into ``wanted``; others than those are an error."""
    found = set()
    for name, tensor in _read(folder):
        if name.startswith(prefixes):
            found.add(name)
            if name in wanted and wanted[name].shape == tensor.shape:
                with torch.no_grad():
                    wanted[name].copy_(tensor)
            else:
                found.add(f"{name} of another shape")
    if found != wanted.keys():
        odd = sorted(found ^ wanted.keys())
        raise CheckpointError(f"{folder / STATE} is of another model ({odd[0]}); give another run folder")
