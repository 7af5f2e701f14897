"""Everything a stopped run needs to go on bit for bit: weights, AdamW moments, random state, counters.

Where adapters train, of the model only what can have changed is kept: the adapters and the projector.

Kept as safetensors and JSON in one folder that is replaced as a whole, so that a kill at any moment leaves either the
old state or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mini_internvl.files import new_folder, recover_folder, write_json
from mini_internvl.model.files import CheckpointError
from mini_internvl.model.lora import MARK, adapted
from mini_internvl.model.vlm import InternVL

STATE, COUNTERS = "state.safetensors", "state.json"


def save_state(
    folder: Path, learner: nn.ModuleDict, optimizer: torch.optim.Optimizer, counters: Mapping[str, Any]
) -> None:
    """Write the state folder atomically.

    ``learner`` holds the model as ``model`` and the stage's loss as ``loss``; ``counters`` is JSON data such as the
    step.
    """
    tensors = {name: value.detach().clone() for name, value in _kept(learner).items()}
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            tensors[f"optimizer.{key}.{names[id(parameter)]}"] = torch.as_tensor(value).clone()
    tensors["random"] = torch.get_rng_state()
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / STATE)
        write_json(temporary / COUNTERS, counters)


def read_counters(folder: Path) -> dict[str, Any] | None:
    """The counters of a state folder, or ``None`` when there is no state."""
    recover_folder(folder)
    path = folder / COUNTERS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def load_weights(folder: Path, model: InternVL) -> None:
    """Put a finished stage's weights into the model."""
    _load(load_file(folder / STATE), nn.ModuleDict({"model": model}), ("model.",))


def load_state(folder: Path, learner: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
    """Put weights, moments and random state back."""
    tensors = load_file(folder / STATE)
    _load(tensors, learner, ("model.", "loss."))
    for name, parameter in learner.named_parameters():
        keys = [key for key in tensors if key.startswith("optimizer.") and key.split(".", 2)[2] == name]
        if keys:
            optimizer.state[parameter] = {key.split(".", 2)[1]: tensors[key] for key in keys}
    torch.set_rng_state(tensors["random"])


def _kept(learner: nn.ModuleDict) -> dict[str, Tensor]:
    """The tensors that a state holds: all, or with adapters all but the frozen base."""
    state: dict[str, Tensor] = learner.state_dict()
    if not adapted(learner):
        return state
    base = ("model.vision_model.", "model.language_model.")
    return {name: value for name, value in state.items() if MARK in name or not name.startswith(base)}


def _load(tensors: Mapping[str, Tensor], learner: nn.ModuleDict, prefixes: tuple[str, ...]) -> None:
    """Put back what :func:`_kept` chose; other tensors than those are an error."""
    given = {name: value for name, value in tensors.items() if name.startswith(prefixes)}
    if given.keys() != _kept(learner).keys():
        odd = sorted(given.keys() ^ _kept(learner).keys())
        raise CheckpointError(f"{STATE} is of another model ({odd[0]}); delete the run's state folder")
    learner.load_state_dict(given, strict=False)
