"""One stage of training: what learns, from what, and how fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mini_internvl import plugins
from mini_internvl.recipes.fields import MAY_CHANGE, RecipeError, from_dict
from mini_internvl.recipes.source import SourceRecipe

PARTS = ("vision", "projector", "llm")
FLASH_PARTS = ("short_projector", "router")  # what a Flash model has beside them
BLOCKS = ("vision", "llm")  # parts that are made of blocks
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
PACKING = ("fit", "buffer")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What every loss can be given under its name; its file in ``train/losses`` adds its own."""

    weight: float = 1.0
    """Factor of the loss beside the first one of the stage."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise RecipeError(f"weight is {self.weight}; it must be above 0")

    def check_student(self, stage: StageRecipe) -> None:
        """RecipeError where a student would learn nothing from the loss in this stage."""

    def check_stage(self, stage: StageRecipe) -> None:
        """RecipeError where the loss is of no use in this stage."""


@dataclass(frozen=True, kw_only=True)
class PackRecipe:
    """Samples packed into rows up to two budgets: nothing is padded, and every pack is about as much work."""

    tokens: int = 16384
    """Most decoder tokens of a pack."""
    tiles: int = 48
    """Most tiles of a pack, thumbnails counted."""
    method: str = "fit"
    """``fit`` fills best; ``buffer`` is the greedy buffer of the official code."""

    def __post_init__(self) -> None:
        for field in ("tokens", "tiles"):
            if getattr(self, field) < 1:
                raise RecipeError(f"pack.{field} is {getattr(self, field)}; it must be at least 1")
        if self.method not in PACKING:
            raise RecipeError(f'pack.method is "{self.method}"; known: {", ".join(PACKING)}')


@dataclass(frozen=True, kw_only=True)
class PartRecipe:
    """How one part of the model trains in a stage."""

    lr: float | None = None
    """Peak learning rate of the part; the stage's when left out."""
    layers: int | None = None
    """Only the last so many blocks train: of the encoder those that run, of the language model with the final norm and
    the output matrix after them. Embeddings, and all else before these blocks, are frozen. All when left out."""
    lora: bool | None = None
    """True: the part's adapters train; False: its weights, beside adapters of another part. Left out: the adapters
    where the model has any."""

    def __post_init__(self) -> None:
        if self.lr is not None and self.lr <= 0:
            raise RecipeError(f"lr is {self.lr}; it must be above 0")
        if self.layers is not None and self.layers < 1:
            raise RecipeError(f"layers is {self.layers}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """One stage of training, named in logs and checkpoints: so many optimiser steps over a mix of sources."""

    name: str
    data: tuple[SourceRecipe, ...]
    steps: int
    train: tuple[str, ...] | Mapping[str, Any] = PARTS
    """Parts that learn: any of vision, projector, llm, and of a Flash model short_projector and router; the others are
    frozen. A list, or names with settings of each
    (:class:`PartRecipe`): ``{vision: {lr: 4e-6, layers: 4}, projector: {}, llm: {lora: true}}``. An empty list trains
    the heads of ``loss: heads`` alone."""
    loss: str | Mapping[str, Mapping[str, Any]] = "answers"
    """Name of a loss, or names with their settings: ``{answers: {reduction: square}, patches: {weight: 0.04}}``. The
    first one counts, the others are added to it. Each is a file in ``train/losses``."""
    optimizer: str = "adamw"
    """``adamw``; ``adamw8bit``, whose moments take two bytes a weight instead of eight (extra ``lowbit``); or ``muon``
    for the matrices of a model that trains from nothing (AdamW for the rest)."""
    lr: float = 4e-5
    """Peak learning rate."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end over the peak."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the rate rises linearly from zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; biases, norms and scales are exempt."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    batch_size: int = 32
    """Samples per step over all processes; packs, where the stage packs."""
    pack: PackRecipe | None = None
    """Budgets of a pack, one of which is a micro batch; left out, samples are padded."""
    micro_batch: int = dataclasses.field(default=16, metadata=MAY_CHANGE)
    """Samples per forward pass; gradients are accumulated over a batch."""
    max_tiles: int = 12
    """Most tiles of a sample, shared by its images, thumbnails not counted."""
    max_length: int = 8192
    """Longest sample in tokens. A longer one gets fewer tiles an image, then loses turns from its end; no picture and
    no answer is cut in the middle, and one whose first answer is too long even so cannot be used."""
    drop_path: float = 0.0
    """Stochastic depth of the encoder's last block."""
    checkpointing: tuple[str, ...] = dataclasses.field(default=(), metadata=MAY_CHANGE)
    """Parts (vision, llm) whose blocks keep their inputs alone for the backward pass and compute the rest again: much
    less memory for about a third more work."""
    cache: bool = False
    """Keep the features of a frozen encoder on disk and read them in later epochs and runs (``train.features``). They
    are rounded to bfloat16."""

    def __post_init__(self) -> None:
        where = f"stage {self.name}"
        known = (*PARTS, *FLASH_PARTS)
        if unknown := [part for part in self.train if part not in known]:
            raise RecipeError(f"{where}: train holds {unknown}; known parts: {', '.join(known)}")
        if isinstance(self.train, Mapping):
            filled = {name: dataclasses.asdict(part) for name, part in self.parts().items()}
            object.__setattr__(self, "train", filled)  # with every default
        unknown = [part for part in self.checkpointing if part not in BLOCKS]
        if unknown:
            raise RecipeError(f"{where}: checkpointing holds {unknown}; parts with blocks: {', '.join(BLOCKS)}")
        if self.cache and ("vision" in self.train or self.drop_path):
            raise RecipeError(f"{where}: cache needs an encoder that rests: no vision in train, and drop_path 0")
        if self.optimizer not in OPTIMIZERS:
            raise RecipeError(f'{where}: optimizer is "{self.optimizer}"; known: {", ".join(OPTIMIZERS)}')
        if not self.data:
            raise RecipeError(f"{where}: data is empty")
        self._check_numbers(where)
        losses = self._check_losses(where)
        filled = {name: dataclasses.asdict(settings) for name, settings in losses.items()}
        object.__setattr__(self, "loss", filled)  # with every default

    def _check_numbers(self, where: str) -> None:
        for field in ("steps", "batch_size", "micro_batch", "max_tiles", "max_length"):
            if getattr(self, field) < 1:
                raise RecipeError(f"{where}: {field} is {getattr(self, field)}; it must be at least 1")
        if self.pack and self.pack.tokens < self.max_length:
            raise RecipeError(
                f"{where}: pack.tokens is {self.pack.tokens}, less than max_length {self.max_length}; lower max_length"
            )
        for field in ("lr", "clip"):
            if getattr(self, field) <= 0:
                raise RecipeError(f"{where}: {field} is {getattr(self, field)}; it must be above 0")
        for field in ("warmup_ratio", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise RecipeError(f"{where}: {field} is {getattr(self, field)}; it must be in [0, 1)")
        for field in ("min_lr_ratio", "weight_decay"):
            if getattr(self, field) < 0:
                raise RecipeError(f"{where}: {field} is {getattr(self, field)}; it must be 0 or above")

    def _check_losses(self, where: str) -> dict[str, Any]:
        """Settings of each loss; RecipeError unless they reach all that trains, and are of use with ``cache``."""
        try:
            losses = self.loss_settings()
            found = {name: plugins.find("train.losses", name) for name in losses}
        except ValueError as error:
            raise RecipeError(f"{where}: {error}") from None
        reaches = {name: loss.REACHES for name, loss in found.items()}
        if idle := [name for name, loss in found.items() if not self.train and not hasattr(loss.Loss, "files")]:
            raise RecipeError(
                f"{where}: train holds nothing, and loss {' and '.join(idle)} has nothing of its own that is kept; "
                f"name parts that train ({', '.join(PARTS)}), or heads alone as the loss"
            )
        reached = self.reached()
        if idle := [part for part in self.train if part not in reached]:
            names = " and ".join(losses)
            raise RecipeError(
                f"{where}: loss {names} does not reach {', '.join(idle)}; write train: [{', '.join(reached)}]"
            )
        for name, reach in reaches.items() if self.cache else ():
            if tuple(reach) == ("vision",):
                raise RecipeError(f"{where}: loss {name} reads the encoder alone, whose features cache keeps; drop one")
        for settings in losses.values():
            settings.check_stage(self)
        return losses

    def reached(self) -> list[str]:
        """Parts of the model that get a gradient from the losses."""
        reach = [plugins.find("train.losses", name).REACHES for name in self.loss_settings()]
        return [part for part in (*PARTS, *FLASH_PARTS) if any(part in parts for parts in reach)]

    def parts(self) -> dict[str, PartRecipe]:
        """Name of each part that learns -> how it does, checked."""
        if not isinstance(self.train, Mapping):
            return {name: PartRecipe() for name in self.train}
        found = {}
        for name, raw in self.train.items():
            try:
                found[name] = from_dict(PartRecipe, raw or {})
            except RecipeError as error:
                raise RecipeError(f"stage {self.name}: train.{name}: {error}") from None
            if name not in BLOCKS and (found[name].layers, found[name].lora) != (None, None):
                raise RecipeError(f"stage {self.name}: train.{name} has neither blocks nor adapters; leave it lr alone")
        return found

    def loss_settings(self) -> dict[str, Any]:
        """Name of each loss -> its settings, checked."""
        given = {self.loss: {}} if isinstance(self.loss, str) else self.loss
        if not given:
            raise RecipeError("loss is empty; name one, for instance answers")
        if len({plugins.short_name(name) for name in given}) < len(given):
            raise RecipeError(f"two losses share a name: {', '.join(given)}; rename the file of one")
        return {
            name: from_dict(plugins.find("train.losses", name).Settings, raw or {}, f"loss.{name}.")
            for name, raw in given.items()
        }
