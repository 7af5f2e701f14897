"""The first stage of a router: few tokens a tile are to give the answers that all of them give.

Each tile gets all its tokens or few, drawn anew for every batch, and the answers' next-token distributions are drawn
towards those of a frozen reference that sees all tokens of every tile: KL(reference || model), summed over supervised
tokens. On held-out data every tile gets few.

Without ``reference`` the model is its own: then nothing of it may train but ``short_projector``, and no second model is
held. With all parts training and ``reference`` the checkpoint that the run begins with, the stage is the published one.

Published (InternVL3.5, arXiv 2508.18265; ViCO, arXiv 2510.12793): the divergence and its direction, the reference with
all tokens, the two rates with equal chances, and that the whole model trains. Inferred: that tiles draw their rates one
by one (``draw: image`` is the other reading), and that the second projector may train alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mini_internvl.model.config import VLMConfig
from mini_internvl.model.flash import project_routed
from mini_internvl.model.flops import Flops, ModelFlops
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import LossSettings, RecipeError, StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train.learner import Features, tile_count
from mini_internvl.train.losses._rates import (
    at_rest,
    check_flash,
    check_own_reference,
    divergences,
    shortened,
    states_of,
    tile_documents,
)
from mini_internvl.train.losses._reference import Reference, reference_hash
from mini_internvl.train.losses.answers import POWERS, token_weights

REACHES = ("vision", "projector", "llm", "short_projector")
WHOLE = True
DRAWS = ("tile", "image")


@dataclass(frozen=True, kw_only=True)
class Settings(LossSettings):
    """Settings of consistency."""

    reference: str = ""
    """Folder or hub id of the model whose answers are kept; left out, the model itself, of which then nothing but
    ``short_projector`` may train."""
    draw: str = "tile"
    """What draws a rate of its own: each ``tile``, or all tiles of a sample as one (``image``)."""
    share: float = 0.5
    """Chance that few tokens are drawn."""
    reduction: str = "token"
    """How a supervised token weighs, as in ``answers``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("draw", DRAWS), ("reduction", tuple(POWERS))):
            if getattr(self, name) not in known:
                raise RecipeError(f'consistency.{name} is "{getattr(self, name)}"; known: {", ".join(known)}')
        if not 0 < self.share <= 1:
            raise RecipeError(f"consistency.share is {self.share}; it must be above 0 and at most 1")

    def check_stage(self, stage: StageRecipe) -> None:
        """RecipeError where the model would be its own reference and change."""
        check_own_reference("consistency", self.reference, stage)


def fingerprint(settings: Settings) -> str:
    """Of the reference's weights: a run goes on with the same."""
    return reference_hash(settings.reference)


class Loss(nn.Module):
    """The divergence from the reference."""

    def __init__(self, settings: Settings, config: VLMConfig) -> None:
        super().__init__()
        check_flash("consistency", config)
        self.settings = settings
        self.frozen = {"reference": Reference(settings.reference, config)} if settings.reference else {}

    def forward(self, model: InternVL, batch: Batch, images: Features) -> Tensor:
        """The sum over supervised tokens, float32."""
        visual, cut = None, batch
        if tile_count(batch):
            short = self._drawn(tile_documents(batch, model))
            visual, cut = project_routed(model, images.patches, short), shortened(batch, short, model)
        wanted, wanted_head = self._reference(model, batch, images)
        apart = divergences(wanted, wanted_head, states_of(model, cut, visual), model.language_model.lm_head)
        return (apart * token_weights(batch, self.settings.reduction).to(apart.device)).sum()

    def count(self, batch: Batch) -> float:
        """As of ``answers``: the number of supervised tokens where each weighs 1."""
        return float(token_weights(batch, self.settings.reduction).sum())

    def flops(self, cost: ModelFlops) -> ModelFlops:
        """The decoder reads a batch twice, and a gradient flows through it; as if all tiles kept all tokens."""

        def twice(one: Flops, back: float) -> Flops:
            return replace(one, forward=2 * one.forward, backward=max(one.backward, back * one.forward))

        return replace(cost, token=twice(cost.token, 1), pair=twice(cost.pair, 2), supervised=twice(cost.supervised, 1))

    def _drawn(self, documents: Tensor) -> Tensor:
        """(tiles,) which tiles get few tokens."""
        if not self.training:
            return torch.ones(len(documents), dtype=torch.bool)
        if self.settings.draw == "tile":
            return torch.rand(len(documents)) < self.settings.share
        return (torch.rand(int(documents.max()) + 1) < self.settings.share)[documents]

    def _reference(self, model: InternVL, batch: Batch, images: Features) -> tuple[Tensor, nn.Module]:
        """The reference's states at supervised tokens, and its output matrix."""
        if self.frozen:
            return self.frozen["reference"].states(batch), self.frozen["reference"].head
        with at_rest(model):
            visual = model.project_patches(images.patches) if tile_count(batch) else None
            return states_of(model, batch, visual), model.language_model.lm_head
