"""The run folder and its owner: one run at a time, one recipe, the same data and the same base from first to last.

Layout::

    recipe.json                    the recipe with every default filled in
    metrics.jsonl speed.jsonl      one line a step (``train.log``)
    quarantine.jsonl               rows that could not be used
    plan/                          which samples make up the packs of a stage, where it packs
    state/                         the newest two states, from which a stopped run goes on
    best/  last/                   checkpoints in the official layout, or adapter folders where adapters train
    .lock                          held by the process that owns the folder

A folder is claimed when training begins, not before: what fails earlier leaves nothing behind. From then on its state
must be there; a run is never begun anew in silence. Of several processes the first owns the folder for all.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mini_internvl import recipes
from mini_internvl.engine.device import fast_bfloat16, resolve_device
from mini_internvl.files import new_folder, recover_folder, replace_folder, write_json
from mini_internvl.locks import lock, unlock, unusable
from mini_internvl.model.files import write_file
from mini_internvl.ranks import ALONE, Ranks
from mini_internvl.recipes import Recipe
from mini_internvl.train import log, state

FOLDERS = ("best", "last")
ELSEWHERE = "give another folder with --output"
_log = logging.getLogger(__name__)


class RunFolderError(ValueError):
    """A run folder that cannot be used as asked; the message says why and what to do."""


@dataclass(kw_only=True)
class Position:
    """How far a run is."""

    stage: str
    step: int = 0  # finished steps of the stage
    before: int = 0  # steps of the stages before it
    best: float | None = None  # its best score so far
    waited: int = 0  # measurements since then that were no better
    ended: bool = False  # whether the stage is over before its last step, since it no longer gets better
    scale: float = 0.0  # of the loss, where gradients are float16
    grown: int = 0  # steps since the scale last changed


class RunFolder:
    """An owned run folder; made by :func:`own`. All processes of a run call its methods together."""

    def __init__(self, path: Path, ranks: Ranks = ALONE) -> None:
        self.path, self.state, self.ranks = path, path / "state", ranks
        self.facts: dict[str, Any] = {}

    def position(self) -> Position | None:
        """How far the newest whole state is; ``None`` in a folder that is not claimed."""
        saved = state.newest(self.state)
        return None if saved is None else _position(saved)

    def claim(self, recipe: Recipe, facts: Mapping[str, Any], *, extend: bool = False) -> None:
        """Begin a run here, or go on with one, whose logs are cut back to its state.

        RunFolderError where base or data are others than when it began; ``extend`` lets the last stage have other data,
        of which its remaining steps are then planned anew.
        """
        saved = state.newest(self.state)
        if saved is not None:
            before = saved.counters.get("facts", {})
            last = f"{recipe.stages[-1].name}/"
            new = _same_facts(self.path, before, facts, last if extend else None)
            if new and self.ranks.first:
                _log.warning("the remaining steps of %s are drawn from the data as it is now", recipe.stages[-1].name)
                (self.path / "plan" / f"{len(recipe.stages) - 1}.npz").unlink(missing_ok=True)
            facts = {**facts, "data": {**before.get("data", {}), **facts["data"]}}  # also of finished stages
        self.facts = dict(facts)
        if saved is None:
            self.save(Position(stage=recipe.stages[0].name))
        elif self.ranks.first:
            log.cut(self.path, saved.counters.get("logs", {}))
        if self.ranks.first:
            with saving(self.path / "recipe.json"):
                write_json(self.path / "recipe.json", recipes.to_dict(recipe))

    def restore(
        self, stage: str, learner: nn.Module, optimizer: torch.optim.Optimizer, kept: frozenset[str]
    ) -> Position:
        """Put the state of a stage back, if the folder's is of it; how far the stage is."""
        at, saved = self.position(), state.newest(self.state)
        if at is None or saved is None or at.stage != stage or not at.step:
            return Position(stage=stage)
        state.load_state(saved, learner, optimizer, kept)
        return at

    def save(self, at: Position, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write a state, and delete all but the newest; before the first step it is the position alone."""
        folder = self.state / f"{at.before + at.step:08d}"
        counters = {**asdict(at), "facts": self.facts, "logs": log.lengths(self.path)}
        if tensors and self.ranks.size > 1:
            self._save_shards(folder, counters, tensors)
        elif self.ranks.first:
            with saving(self.state), new_folder(folder) as draft:
                if tensors:
                    write_file(tensors, draft / state.STATE)
                write_json(draft / state.COUNTERS, counters)
        if self.ranks.first:
            state.prune(self.state)

    def _save_shards(self, folder: Path, counters: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Every process writes its part of the tensors; the first puts the whole in its place."""
        draft = self.state / f".{folder.name}.draft"
        if self.ranks.first:
            shutil.rmtree(draft, ignore_errors=True)
        self.ranks.exchange(None)
        with saving(self.state):
            state.write_shards(tensors, draft)
            if self.ranks.first:
                write_json(draft / state.COUNTERS, counters)
                replace_folder(draft, folder)
        self.ranks.exchange(None)


def _position(saved: state.Saved) -> Position:
    known = {field.name: saved.counters.get(field.name) for field in fields(Position)}
    return Position(**{name: value for name, value in known.items() if value is not None})


def stages_done(recipe: Recipe, at: Position | None, *, extend: bool) -> int:
    """Number of stages that are complete; one that ended early may be extended."""
    for index, stage in enumerate(recipe.stages):
        if at is not None and at.stage == stage.name:
            early = at.ended and not (extend and stage is recipe.stages[-1])
            return index + 1 if at.step >= stage.steps or early else index
    return 0


@contextmanager
def own(path: Path, ranks: Ranks = ALONE) -> Iterator[RunFolder]:
    """Own a run folder, and clear away what killed saves have left in it; RunFolderError names another owner."""
    there = path.exists()
    held = ranks.by_first(lambda: _take(path))  # the descriptor means something to the first process alone
    try:
        yield RunFolder(path, ranks)
    finally:
        if ranks.first:
            if not (path / "recipe.json").exists():
                (path / ".lock").unlink(missing_ok=True)
                if not there:
                    with suppress(OSError):  # what another has put there stays
                        path.rmdir()
            unlock(held)


def _take(path: Path) -> int:
    """Lock the folder and clear it up."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(unusable(path, error, ELSEWHERE)) from None
    held = lock(path / ".lock", remedy=ELSEWHERE, error=RunFolderError)
    for name in FOLDERS:
        recover_folder(path / name)
        for left in path.glob(f".{name}.*"):
            shutil.rmtree(left, ignore_errors=True)
    for left in (path / "state").glob(".*"):
        shutil.rmtree(left, ignore_errors=True)
    return held


def check_folder(recipe: Recipe, path: Path, *, extend: bool = False) -> Recipe:
    """The recipe as the run of a folder goes on with it: ``auto`` settled, and the same in meaning as the folder's own.

    Claims and changes nothing, so that it can be asked before any work; the folder need not exist. RunFolderError: the
    folder holds a run of another recipe, or one without its state. ``extend`` lets the last stage have more steps, or
    more sources after its own.
    """
    precision = "bf16" if fast_bfloat16(resolve_device(recipe.device)) else "fp32"
    file = path / "recipe.json"
    saved = state.newest(path / "state")
    if not file.exists():
        if saved is not None and saved.counters["step"]:
            raise RunFolderError(f"{path} holds a state but no recipe.json; put it back, or {ELSEWHERE}")
        return recipe if recipe.precision != "auto" else replace(recipe, precision=precision)
    try:
        before = recipes.from_dict(Recipe, json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise RunFolderError(f"{file} cannot be read ({error}); put it back, or {ELSEWHERE}") from None
    if saved is None:
        raise RunFolderError(f"{path} holds a run without its state/; put it back, or {ELSEWHERE}")
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=before.precision)
    found = list(recipes.differences(before, recipe))
    more = [recipes.extends(before, *difference) for difference in found]
    if found and not (extend and all(more)):
        changes = [f"{name} ({_told(old)} then, {_told(new)} now)" for name, old, new in found]
        rest = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        remedy = "go on with --extend" if all(more) else "undo the change"
        raise RunFolderError(
            f"{path} holds a run of another recipe: {', '.join(changes[:3])}{rest}; {remedy}, or {ELSEWHERE}"
        )
    return recipe


def _told(value: Any) -> str:
    """A setting in few words."""
    return f"{len(value)} of them" if isinstance(value, tuple) and len(str(value)) > 60 else str(value)


def has_begun(path: Path) -> bool:
    """Whether a folder holds a run whose training has begun."""
    return state.newest(path / "state") is not None


def check_data(recipe: Recipe, path: Path, data: Mapping[str, Mapping[str, str]], *, extend: bool = False) -> None:
    """Refuse data that are not those which the run of a folder began with, even if it is finished.

    Args:
        recipe: of :func:`check_folder`.
        path: the run's folder, which need not exist.
        data: name of a source, ``STAGE/NUMBER`` or ``held out/NUMBER`` -> its ``path`` and ``fingerprint``.
        extend: the last stage may have other data, where it has steps left to train on them.

    Raises:
        RunFolderError: a source is another.
    """
    saved = state.newest(path / "state")
    if saved is None:
        return
    facts, finished = saved.counters.get("facts", {}), stages_done(recipe, _position(saved), extend=extend)
    free = "" if finished == len(recipe.stages) else f"{recipe.stages[-1].name}/"
    other = _same_data(path, facts, data, free if extend else None)
    if other and finished == len(recipe.stages):
        raise RunFolderError(
            f"the run in {path} has finished its {recipe.stages[-1].steps:,} steps, so nothing would be learnt from "
            f"the data as it is now; give it more steps (minivl adapt: --epochs), or {ELSEWHERE}"
        )


def _same_facts(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], free: str | None) -> bool:
    """Refuse other data or another base, warn of what changes rounding only.

    Data may be others whose names begin with ``free``; whether any is.
    """
    other = _same_data(path, before, now["data"], free)
    if before.get("base", now.get("base")) != now.get("base"):
        raise RunFolderError(
            f"the weights that the run in {path} began from were replaced; put them back, or {ELSEWHERE}"
        )
    for name in ("threads", "device"):
        if before.get(name, now.get(name)) != now.get(name):
            text = "this run began with %s %s and goes on with %s: results differ by rounding"
            _log.warning(text, name, before[name], now[name])
    return other


def _same_data(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Mapping[str, str]], free: str | None
) -> bool:  # fmt: skip
    """Refuse other data but those whose names begin with ``free``; whether any of these is another."""
    known, other = before.get("data", {}), False
    for name, new in now.items():
        if free is not None and name.startswith(free):
            other = other or known.get(name, {}).get("fingerprint") != new["fingerprint"]
        elif known.get(name, new)["fingerprint"] != new["fingerprint"]:
            raise RunFolderError(
                f"{new['path']} is not the data that the run in {path} began with; put it back, go on with what it is "
                f"now (--extend, in the last stage), or {ELSEWHERE}"
            )
    return other


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
