"""The run folder and its owner: one process at a time, one recipe, the same data and the same base from first to last.

Layout::

    recipe.json      the recipe with every default filled in
    metrics.jsonl    one line a step, appended (``train.log`` reads it)
    state/           what a stopped run goes on from
    best/  last/     checkpoints in the official layout, or adapter folders where adapters train
    .lock            held by the process that owns the folder

A folder is claimed when training begins, not before: what fails earlier leaves nothing behind. From then on its state
must be there; a run is never begun anew in silence.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mini_internvl import recipes
from mini_internvl.engine.device import fast_bfloat16, resolve_device
from mini_internvl.files import new_folder, recover_folder, write_json
from mini_internvl.model.files import write_file
from mini_internvl.recipes import Recipe
from mini_internvl.train import state

if sys.platform != "win32":  # which has no such lock
    import fcntl

FOLDERS = ("state", "best", "last")
_locks: set[int] = set()
ELSEWHERE = "give another folder with --output"
_log = logging.getLogger(__name__)


class RunFolderError(ValueError):
    """A run folder that cannot be used as asked; the message says why and what to do."""


@dataclass(kw_only=True)
class Position:
    """How far a run is: the finished steps of a stage, and its best score so far."""

    stage: str
    step: int = 0
    best: float | None = None


class RunFolder:
    """An owned run folder; made by :func:`own`."""

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, path / "state"
        self.facts: dict[str, Any] = {}

    def position(self) -> Position | None:
        """How far the saved state is; ``None`` in a folder that is not claimed."""
        counters = state.read_counters(self.state)
        if counters is None:
            return None
        best = counters.get("best")
        best = best if isinstance(best, float | int) else None
        return Position(stage=counters["stage"], step=counters["step"], best=best)

    def claim(self, recipe: Recipe, facts: Mapping[str, Any]) -> None:
        """Begin a run here, or go on with one; RunFolderError where base or data are others than when it began."""
        counters = state.read_counters(self.state)
        if counters is not None:
            before = counters.get("facts", {})
            _same_facts(self.path, before, facts)
            facts = {**facts, "data": {**before.get("data", {}), **facts["data"]}}  # also of finished stages
        self.facts = dict(facts)
        if counters is None:
            self.save(Position(stage=recipe.stages[0].name))
        with saving(self.path / "recipe.json"):
            write_json(self.path / "recipe.json", recipes.to_dict(recipe))

    def restore(
        self, stage: str, learner: nn.Module, optimizer: torch.optim.Optimizer, kept: frozenset[str]
    ) -> Position:
        """Put the state of a stage back, if the folder's is of it; how far the stage is."""
        at = self.position()
        if at is None or at.stage != stage or not at.step:
            return Position(stage=stage)
        state.load_state(self.state, learner, optimizer, kept)
        return at

    def save(self, at: Position, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Replace the state as a whole; before the first step it is the position alone."""
        with saving(self.state), new_folder(self.state) as temporary:
            if tensors:
                write_file(tensors, temporary / state.STATE)
            write_json(temporary / state.COUNTERS, {**asdict(at), "facts": self.facts})


@contextmanager
def own(path: Path) -> Iterator[RunFolder]:
    """Own a run folder, and clear away what killed saves have left in it; RunFolderError names another owner."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunFolderError("training runs in one process so far; start it without torchrun, or with WORLD_SIZE=1")
    there = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from None
    lock = _lock(path / ".lock")
    try:
        for name in FOLDERS:
            recover_folder(path / name)
            for left in path.glob(f".{name}.*"):
                shutil.rmtree(left, ignore_errors=True)
        yield RunFolder(path)
    finally:
        _locks.discard(lock)
        if not (path / "recipe.json").exists():
            (path / ".lock").unlink(missing_ok=True)
            if not there:
                with suppress(OSError):  # what another has put there stays
                    path.rmdir()
        os.close(lock)


def _lock(path: Path) -> int:
    """Descriptor of the locked file. The lock is the kernel's: it ends with the process and holds over containers."""
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unusable(path.parent, error) from None
        try:
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), path.stat()):
                    break
        except BlockingIOError:
            owner = os.read(lock, 300).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise RunFolderError(f"{path.parent} is in use by {owner}; wait for it, or {ELSEWHERE}") from None
        except OSError as error:  # for instance a network disk without locks
            os.close(lock)
            raise _unusable(path.parent, error) from None
        os.close(lock)  # its last owner has removed it in between
    _locks.add(lock)
    name = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}\n"
    with suppress(OSError):  # the lock holds without the name, on a full disk too
        os.ftruncate(lock, 0)
        os.write(lock, name.encode())
    return lock


def _unusable(folder: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"{folder} cannot be locked for a run ({error.strerror}); check the disk, or {ELSEWHERE}")


def _close_locks() -> None:
    """In a forked worker: it must not hold the lock of a run whose process was killed."""
    while _locks:  # once: a fork of the worker may have another file under the same number
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)


def check_folder(recipe: Recipe, path: Path) -> Recipe:
    """The recipe as the run of a folder goes on with it: ``auto`` settled, and the same in meaning as the folder's own.

    Claims and changes nothing, so that it can be asked before any work; the folder need not exist. RunFolderError: the
    folder holds a run of another recipe, or one without its state.
    """
    precision = "bf16" if fast_bfloat16(resolve_device(recipe.device)) else "fp32"
    file = path / "recipe.json"
    counters = state.read_counters(path / "state")
    if not file.exists():
        if counters is not None and counters["step"]:
            raise RunFolderError(f"{path} holds a state but no recipe.json; put it back, or {ELSEWHERE}")
        return recipe if recipe.precision != "auto" else replace(recipe, precision=precision)
    try:
        before = recipes.from_dict(Recipe, json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise RunFolderError(f"{file} cannot be read ({error}); put it back, or {ELSEWHERE}") from None
    if counters is None:
        raise RunFolderError(f"{path} holds a run without its state/; put it back, or {ELSEWHERE}")
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=before.precision)
    changes = [f"{name} ({old} then, {new} now)" for name, old, new in recipes.differences(before, recipe)]
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise RunFolderError(
            f"{path} holds a run of another recipe: {', '.join(changes[:3])}{more}; undo the change, or {ELSEWHERE}"
        )
    return recipe


def _same_facts(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse other data or another base, warn of what changes rounding only."""
    for name, new in now["data"].items():
        if before.get("data", {}).get(name, new)["fingerprint"] != new["fingerprint"]:
            raise RunFolderError(
                f"{new['path']} is not the data that the run in {path} began with; put it back, or {ELSEWHERE}"
            )
    if before.get("base", now.get("base")) != now.get("base"):
        raise RunFolderError(
            f"the weights that the run in {path} began from were replaced; put them back, or {ELSEWHERE}"
        )
    for name in ("threads", "device"):
        if before.get(name, now.get(name)) != now.get(name):
            text = "this run began with %s %s and goes on with %s: results differ by rounding"
            _log.warning(text, name, before[name], now[name])


@contextmanager
def saving(what: Path) -> Iterator[None]:
    """RunFolderError, in one line, where something could not be saved: the disk is full or cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RunFolderError(
            f"{what} could not be saved ({reason}); what was saved before is intact: make room, and the same command "
            "goes on from it"
        ) from None
