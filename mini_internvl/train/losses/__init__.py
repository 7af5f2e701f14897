"""Losses: one file each, found by its name under ``loss`` in a stage of a recipe. A file has

- ``Settings``: a frozen dataclass below ``recipes.LossSettings``, made from what the recipe gives, that checks itself;
- ``REACHES``: the parts of the model (vision, projector, llm, short_projector, router) that get a gradient from it;
- ``WHOLE = True``, where it runs the model by itself, so that its processes cannot share one in shards;
- ``targets(sample, images, config, settings, *, auxiliary)``, if it wants more than labels: tensors that go with the
  sample as ``extras``; those of a batch are joined along their first axis;
- ``Loss(settings, config)``: a module; ``forward(model, batch, images)`` returns a sum, ``count(batch)`` what sums are
  divided by. Its parameters train with the stage, are kept in its state, and are gone after it. Modules in its
  attribute ``frozen``, a dictionary, are moved to the device with it (by their own ``place(device)``, if they have
  one), but neither trained nor saved; ``tile_flops()`` tells what they cost a tile, if they read every one;
- ``shared = True`` of a ``Loss`` whose buffers change with the batches: each step ends with the first process's;
- ``flops(cost)`` of a ``Loss`` that runs the model by itself: what it then costs, from ``model.flops.ModelFlops``;
- ``layers`` of a ``Loss``, where it reads hidden states (``images.hidden(layers)``): how many decoder blocks, ``None``
  for all; ``last_states``, where it reads those of the encoder (the last of ``images.last_states``): how many; and
  ``reached(model)``, where it reaches less than whole parts: the parameters that get a gradient from it;
- ``begin(samples, beside)`` of a ``Loss``, where it needs something before the first step: called once, with the
  stage's samples in order, and with the contents, by name, of files that lie beside the model that it begins with;
- ``open_store(folder, limit)`` of a ``Loss``, where it keeps features of pictures on disk (``train.kept``): the store,
  which is given each picture before, or ``None``; and ``kept_bytes``: what it keeps of a tile, 0 for nothing;
- ``files()`` of a ``Loss``, where something of it is kept: such contents, which are saved beside the model. All
  processes call it, among which weights may be sharded;
- ``fingerprint(settings)``, where it depends on files: their hash, with which alone a stopped run goes on;
- ``held_out(recipe, stage)``, where it can be measured on some sources only: those sources.

The first loss that a stage names is the one that counts and that is measured on held-out data; the others are
auxiliary: each is added with its weight while the model trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mini_internvl import plugins
from mini_internvl.inputs.prepare import CutImage
from mini_internvl.model.config import VLMConfig
from mini_internvl.recipes import Recipe, SourceRecipe, StageRecipe
from mini_internvl.records import Sample
from mini_internvl.train.kept import KeptFeatures, features_folder

CONTRACT = ("Settings", "REACHES", "Loss")
Targets = Callable[[Sample, Sequence[CutImage]], Mapping[str, Tensor]]


def targets(stage: StageRecipe, config: VLMConfig) -> Targets:
    """(sample, its images) -> the extras that the losses of a stage want."""
    wanted = [(plugins.find("train.losses", name), given) for name, given in stage.loss_settings().items()]

    def make(sample: Sample, images: Sequence[CutImage]) -> dict[str, Tensor]:
        extras: dict[str, Tensor] = {}
        for place, (module, given) in enumerate(wanted):
            if hasattr(module, "targets"):
                extras.update(module.targets(sample, images, config, given, auxiliary=place > 0))
        return extras

    return make


def begin(losses: Iterable[Any], dataset: Any, beside: Mapping[str, bytes]) -> None:
    """Let the losses of a stage prepare on its samples, which are ``dataset.sample(number)``, and on what lies beside
    its model. DataError: what they want is not there."""
    for loss in losses:
        if hasattr(loss, "begin"):
            samples = (dataset.sample(number) for number in range(len(dataset)))
            loss.begin((sample for sample in samples if isinstance(sample, Sample)), beside)


def open_store(loss: Any, recipe: Recipe) -> KeptFeatures | None:
    """Where a loss keeps features of pictures, if it does."""
    if not hasattr(loss, "open_store"):
        return None
    found: KeptFeatures | None = loss.open_store(features_folder(), int(recipe.cache_gb * 1e9))
    return found


def files(losses: Iterable[Any]) -> dict[str, bytes]:
    """What goes beside the saved model, by file name; all processes call it."""
    return {name: content for loss in losses if hasattr(loss, "files") for name, content in loss.files().items()}


def base_hash(recipe: Recipe, base: str) -> str:
    """Of the weights that a run begins from, and of files that its losses depend on."""
    named = [(name, given) for stage in recipe.stages for name, given in stage.loss_settings().items()]
    own = [(plugins.find("train.losses", name), given) for name, given in named]
    found = [module.fingerprint(given) for module, given in own if hasattr(module, "fingerprint")]
    return hashlib.sha256("".join([base, *found]).encode()).hexdigest() if found else base


def held_out_sources(recipe: Recipe, stage: StageRecipe) -> tuple[SourceRecipe, ...]:
    """The recipe's held-out sources, or those on which the stage's first loss can be measured."""
    first = plugins.find("train.losses", next(iter(stage.loss_settings())))
    choose = getattr(first, "held_out", None)
    return recipe.held_out if choose is None else choose(recipe, stage)
