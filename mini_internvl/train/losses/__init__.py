"""Losses: one file each, found by its name under ``loss`` in a stage of a recipe. A file has

- ``Settings``: a frozen dataclass below ``recipes.LossSettings``, made from what the recipe gives, that checks itself;
- ``REACHES``: the parts of the model (vision, projector, llm) that get a gradient from it;
- ``targets(sample, images, config, settings, auxiliary)``, if it wants more than labels: tensors that go with the
  sample as ``extras``; those of a batch are joined along their first axis;
- ``Loss(settings, config)``: a module; ``forward(model, batch, images)`` returns a sum, ``count(batch)`` what sums are
  divided by. Its parameters train with the stage, are kept in its state, and are gone after it. Modules in its
  attribute ``frozen``, a dictionary, are moved to the device with it, but neither trained nor saved;
- ``held_out(recipe, stage)``, where it can be measured on some sources only: those sources.

The first loss that a stage names is the one that counts and that is measured on held-out data; the others are
auxiliary: each is added with its weight while the model trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mini_internvl import plugins
from mini_internvl.inputs.prepare import CutImage
from mini_internvl.inputs.tiles import normalise
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import Recipe, SourceRecipe, StageRecipe
from mini_internvl.records import Batch, Sample

CONTRACT = ("Settings", "REACHES", "Loss")
Targets = Callable[[Sample, Sequence[CutImage]], Mapping[str, Tensor]]


class ImageFeatures:
    """What the losses of a batch read of its images; the encoder runs once, and only when it is asked for."""

    def __init__(self, model: InternVL, tiles: Tensor) -> None:
        self.model, self.tiles = model, tiles

    @cached_property
    def vision(self) -> Tensor:
        """(tiles, 1 + patches, hidden) of the encoder."""
        pixels = normalise(self.tiles).to(self.model.dtype)
        return self.model.vision_model(pixels, self.model.config.select_layer)

    @cached_property
    def visual_tokens(self) -> Tensor:
        """(tiles, tokens per tile, LLM hidden)."""
        return self.model.project(self.vision)


class Learner(nn.Module):
    """A model and the losses of a stage: the one unit that the loop calls, and that can be wrapped or compiled."""

    def __init__(self, model: InternVL, stage: StageRecipe) -> None:
        super().__init__()
        self.model, self.loss = model, nn.ModuleDict()
        self.weights: dict[str, float] = {}
        for name, settings in stage.loss_settings().items():
            key = plugins.short_name(name)
            self.loss[key], self.weights[key] = find(name).Loss(settings, model.config), settings.weight
        self.loss.to(model.device)
        for loss in self.loss.values():
            for module in getattr(loss, "frozen", {}).values():
                module.to(model.device).requires_grad_(False).eval()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``loss``, the weighted sum over the batch, and ``count``, what sums of the step are divided by."""
        images = ImageFeatures(self.model, batch.tiles)
        first, *auxiliary = self.loss
        total = self.loss[first](self.model, batch, images)
        if self.training:
            for name in auxiliary:
                total = total + self.weights[name] * self.loss[name](self.model, batch, images)
            if not len(batch.tiles):
                total = total + self._zero(batch)
        return {"loss": total, "count": torch.tensor(self.count(batch), dtype=torch.float64)}

    def count(self, batch: Batch) -> float:
        """What the first loss counts in a batch."""
        first: Any = self.loss[next(iter(self.loss))]
        return float(first.count(batch))

    def _zero(self, batch: Batch) -> Tensor:
        """0 that depends on encoder and projector: in a batch of text alone they get a gradient too, on every rank."""
        parts = (self.model.vision_model, self.model.mlp1)
        if not any(parameter.requires_grad for part in parts for parameter in part.parameters()):
            return torch.zeros((), device=self.model.device)
        blank = torch.zeros(1, *batch.tiles.shape[1:], dtype=torch.uint8, device=self.model.device)
        return ImageFeatures(self.model, blank).visual_tokens.float().sum() * 0.0


def find(name: str) -> ModuleType:
    """The file of a loss."""
    return plugins.find("train.losses", name)


def targets(stage: StageRecipe, config: VLMConfig) -> Targets:
    """(sample, its images) -> the extras that the losses of a stage want."""
    wanted = [(find(name), given) for name, given in stage.loss_settings().items()]

    def make(sample: Sample, images: Sequence[CutImage]) -> dict[str, Tensor]:
        extras: dict[str, Tensor] = {}
        for place, (module, given) in enumerate(wanted):
            if hasattr(module, "targets"):
                extras.update(module.targets(sample, images, config, given, auxiliary=place > 0))
        return extras

    return make


def held_out_sources(recipe: Recipe, stage: StageRecipe) -> tuple[SourceRecipe, ...]:
    """The recipe's held-out sources, or those on which the stage's first loss can be measured."""
    choose = getattr(find(next(iter(stage.loss_settings()))), "held_out", None)
    return recipe.held_out if choose is None else choose(recipe, stage)
