"""Everything a stopped run needs to go on bit for bit: weights, AdamW moments, random state, counters.

Kept as safetensors and JSON in one folder that is replaced as a whole, so that a kill at any moment leaves either the
old state or the new one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mini_internvl.model.checkpoint import recover_folder, replace_folder
from mini_internvl.model.vlm import InternVL

STATE, COUNTERS = "state.safetensors", "state.json"


def save_state(
    folder: Path, learner: nn.ModuleDict, optimizer: torch.optim.Optimizer, counters: Mapping[str, Any]
) -> None:
    """Write the state folder atomically.

    ``learner`` holds the model as ``model`` and the stage's loss as ``loss``; ``counters`` is JSON data such as the
    step.
    """
    tensors = {name: value.detach().clone() for name, value in learner.state_dict().items()}
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            tensors[f"optimizer.{key}.{names[id(parameter)]}"] = torch.as_tensor(value).clone()
    tensors["random"] = torch.get_rng_state()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file(tensors, temporary / STATE)
        (temporary / COUNTERS).write_text(json.dumps(dict(counters), indent=2) + "\n", encoding="utf-8")
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_counters(folder: Path) -> dict[str, Any] | None:
    """The counters of a state folder, or ``None`` when there is no state."""
    recover_folder(folder)
    path = folder / COUNTERS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def load_weights(folder: Path, model: InternVL) -> None:
    """Put a finished stage's weights into the model."""
    tensors = load_file(folder / STATE)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})


def load_state(folder: Path, learner: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
    """Put weights, moments and random state back."""
    tensors = load_file(folder / STATE)
    learner.load_state_dict({k: v for k, v in tensors.items() if k.startswith(("model.", "loss."))})
    for name, parameter in learner.named_parameters():
        keys = [key for key in tensors if key.startswith("optimizer.") and key.split(".", 2)[2] == name]
        if keys:
            optimizer.state[parameter] = {key.split(".", 2)[1]: tensors[key] for key in keys}
    torch.set_rng_state(tensors["random"])
