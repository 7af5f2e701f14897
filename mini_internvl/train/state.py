"""Everything a stopped run needs to go on bit for bit: what it has trained, the optimiser, counters.

Random numbers are not among it: each micro batch has a seed of its own (see ``train.loop``). Of the model only the
parts are kept that the run has trained so far; the rest is the base, whose hash stands in the counters.

A state is a folder, written beside the others and renamed when it is whole; the newest two stay. One process writes
safetensors, several write their shards by torch's distributed checkpoint, and both are read by any number of processes.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mini_internvl.model.files import CheckpointError
from mini_internvl.model.vlm import InternVL

STATE, COUNTERS, SHARDS = "state.safetensors", "state.json", ".metadata"
KEPT = 2  # states that stay
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A state on disk."""

    folder: Path
    counters: Mapping[str, Any]

    @property
    def sharded(self) -> bool:
        """Whether several processes have written it."""
        return not (self.folder / STATE).exists()


def newest(folder: Path) -> Saved | None:
    """The newest state that is whole; ``None`` where there is none at all.

    A torn one is skipped with a message. CheckpointError where none is whole.
    """
    found = sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: -int(path.name))
    for number, path in enumerate(found):
        try:
            return Saved(folder=path, counters=_counters(path))
        except CheckpointError as error:
            if number == len(found) - 1:
                raise
            _log.warning("%s; going on from the state before it", error)
    if (folder / COUNTERS).exists():
        raise CheckpointError(
            f"{folder} is of an earlier version of this package; finish the run with it, or begin anew"
        )
    return None


def _counters(folder: Path) -> dict[str, Any]:
    """The counters of a state, whose tensors are looked at as far as their headers tell."""
    try:
        counters = json.loads((folder / COUNTERS).read_text(encoding="utf-8"))
        fits = isinstance(counters["stage"], str) and type(counters["step"]) is int and counters["step"] >= 0
        if fits and counters["step"] and not (folder / SHARDS).exists():
            with safe_open(folder / STATE, framework="pt") as file:
                fits = bool(file.keys())
    except (OSError, ValueError, TypeError, KeyError, SafetensorError):
        fits = False
    if not fits:
        raise _damaged(folder)
    return dict(counters)


def _damaged(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder} is damaged: {COUNTERS} or {STATE} is missing or unreadable; put the folder back, or give "
        "another run folder"
    )


def prune(folder: Path) -> None:
    """Delete all states but the newest."""
    found = sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    for path in found[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def tensors(learner: nn.Module, optimizer: torch.optim.Optimizer, kept: frozenset[str]) -> dict[str, Tensor]:
    """What a state holds: the model's parameters in ``kept``, all of the losses, the optimiser's tensors."""
    learned = _learned(learner, kept)  # first: after a measurement some weights are still gathered from all shards
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    moments = {
        f"optimizer.{key}.{names[id(parameter)]}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    return {**learned, **moments}


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write a state from several processes, all of which call it; OSError in all of them where one cannot."""
    from torch.distributed import checkpoint

    try:
        checkpoint.save(dict(tensors), checkpoint_id=folder)
    except checkpoint.CheckpointException as error:  # which is no Exception
        failures = [failure for failure, _ in error.failures.values()]
        for failure in failures:
            if isinstance(failure, KeyboardInterrupt | OSError):
                raise failure from None
        raise OSError(str(failures[0])) from None


def load_weights(saved: Saved, model: InternVL, kept: frozenset[str]) -> None:
    """Put what a finished stage has trained into the model."""
    wanted = {f"model.{name}": value for name, value in model.named_parameters() if name in kept}
    _load(saved, wanted, ("model.",))


def load_losses(saved: Saved, learner: nn.Module) -> None:
    """Put back what the losses of a finished stage have learnt."""
    wanted = {name: value for name, value in learner.state_dict(keep_vars=True).items() if name.startswith("loss.")}
    _load(saved, wanted, ("loss.",))


def load_state(saved: Saved, learner: nn.Module, optimizer: torch.optim.Optimizer, kept: frozenset[str]) -> None:
    """Put weights and the optimiser's tensors back."""
    _load(saved, _learned(learner, kept), ("model.", "loss."))
    _begin(optimizer)
    loaded: Iterable[tuple[str, Tensor]] = _read(saved.folder)
    if saved.sharded:
        shards = {k: v for k, v in tensors(learner, optimizer, kept).items() if k[:10] == "optimizer."}
        _load(saved, shards, ())
        loaded = shards.items()
    parameters = dict(learner.named_parameters())
    for name, tensor in loaded:
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            key, _, parameter = rest.partition(".")
            values = optimizer.state[parameters[parameter]]
            old = values.get(key, parameters[parameter])
            if not isinstance(old, Tensor):
                values[key] = tensor.item()
            elif not saved.sharded:  # else it was read into its place
                values[key] = _like(tensor, old)


def _begin(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimiser's tensors, by a step that changes nothing."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    """The whole tensor where ``other`` is: on its device, and in shards where it is."""
    if isinstance(other, DTensor):
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return tensor.to(other.device)


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


def _load(saved: Saved, wanted: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> None:
    """Copy the state's tensors into ``wanted``; others of these prefixes than those are an error."""
    if saved.sharded:
        _load_shards(saved.folder, wanted, prefixes)
        return
    found = set()
    for name, tensor in _read(saved.folder):
        if name.startswith(prefixes):
            found.add(name)
            if name in wanted and wanted[name].shape == tensor.shape:
                with torch.no_grad():
                    wanted[name].copy_(_like(tensor, wanted[name]))
            else:
                found.add(f"{name} of another shape")
    _same(found, wanted, saved.folder)


def _load_shards(folder: Path, wanted: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> None:
    from torch import distributed
    from torch.distributed import checkpoint

    held = {name: value.detach() for name, value in wanted.items()}
    try:
        known = checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
        found = {name for name in known if name.startswith(prefixes)} if prefixes else set(wanted) & set(known)
        _same(found, wanted, folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one process alone is told that it is alone
            checkpoint.load(held, checkpoint_id=folder, no_dist=not distributed.is_initialized())
    except checkpoint.CheckpointException as error:
        failures = [failure for failure, _ in error.failures.values()]
        for failure in failures:
            if isinstance(failure, KeyboardInterrupt):  # somebody stops the run while it is read
                raise failure from None
        raise CheckpointError(f"{folder} is damaged ({failures[0]}); give another run folder") from None
    except (OSError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is damaged ({error}); give another run folder") from None


def _same(found: set[str], wanted: Mapping[str, Tensor], folder: Path) -> None:
    if found != wanted.keys():
        odd = sorted(found ^ wanted.keys())
        raise CheckpointError(f"{folder} is of another model ({odd[0]}); give another run folder")
