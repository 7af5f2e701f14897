"""The second stage of a router: it learns which tiles lose little with few tokens. Nothing else trains.

For each sample the loss is the mean divergence of its answers from those of the reference (see ``consistency``). One of
its tiles is drawn and gets few tokens while the others keep all. Where the ratio of this loss to the one with all
tokens is below a threshold, the router should say that few are enough for this tile, else that all are needed. The
threshold is a percentile of the latest ratios, so that the two answers stay balanced while the ratios' size depends on
model and data. Held-out data draw the same tiles each time and do not move the threshold.

Without ``reference`` the model with all tokens is the reference, whose loss is then zero in every sample. So the loss
with few tokens alone is compared, which orders samples as ratios to one number would.

Published (arXiv 2508.18265, 2510.12793): cross entropy, the ratio, the moving percentile, balanced targets, and that
the router alone trains. Inferred: that a tile's ratio is measured with the other tiles whole (``probe: image`` gives
all tiles of a sample few tokens, and the same target), the percentile and the window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_internvl.model.config import VLMConfig
from mini_internvl.model.flash import project_routed
from mini_internvl.model.flops import ModelFlops
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
from mini_internvl.train.losses.answers import IGNORE
from mini_internvl.train.losses.heads import batch_documents

REACHES = ("router",)
WHOLE = True
PROBES = ("tile", "image")
LEAST = 1e-6  # of the loss with all tokens, in nats: below it a ratio says nothing


@dataclass(frozen=True, kw_only=True)
class Settings(LossSettings):
    """Settings of the router's loss."""

    reference: str = ""
    """Folder or hub id of the model whose answers are kept, the one of the stage before; left out, the model with all
    tokens."""
    percentile: float = 50.0
    """Of the latest ratios: those below it mean that few tokens are enough."""
    window: int = 1024
    """How many ratios, of one tile each, are the latest."""
    probe: str = "tile"
    """What gets few tokens while a ratio is measured: one ``tile`` of each sample, or all (``image``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probe not in PROBES:
            raise RecipeError(f'router.probe is "{self.probe}"; known: {", ".join(PROBES)}')
        if not 0 < self.percentile < 100:
            raise RecipeError(f"router.percentile is {self.percentile}; it must be between 0 and 100")
        if self.window < 1:
            raise RecipeError(f"router.window is {self.window}; it must be at least 1")

    def check_stage(self, stage: StageRecipe) -> None:
        """RecipeError where what the router judges changes meanwhile."""
        if others := [part for part in stage.train if part != "router"]:
            raise RecipeError(
                f"stage {stage.name}: {', '.join(others)} trains beside the router; write train: [router]"
            )
        check_own_reference("router", self.reference, stage)


def fingerprint(settings: Settings) -> str:
    """Of the reference's weights: a run goes on with the same."""
    return reference_hash(settings.reference)


class Loss(nn.Module):
    """Cross entropy of the router, and the latest ratios, which are kept in a run's state."""

    def __init__(self, settings: Settings, config: VLMConfig) -> None:
        super().__init__()
        check_flash("router", config)
        self.settings = settings
        self.frozen = {"reference": Reference(settings.reference, config)} if settings.reference else {}
        self.shared = True
        self.latest: Tensor
        self.register_buffer("latest", torch.full((settings.window,), torch.nan))

    def forward(self, model: InternVL, batch: Batch, images: Features) -> Tensor:
        """The sum over probed tiles, float32."""
        if not tile_count(batch):
            return batch.tiles.new_zeros((), dtype=torch.float32)
        documents = tile_documents(batch, model)
        probed = self._probed(documents)
        places = probed.nonzero()[:, 0]
        with at_rest(model):
            ratios = self._ratios(model, batch, images, probed)
        wanted = self.targets(ratios[documents[places].to(ratios.device)])
        patches = images.patches.detach()[places.to(wanted.device)]
        scores = model.gating.logits(model.pooling_before_gating(patches))
        return F.cross_entropy(scores.float(), wanted, reduction="sum")

    def targets(self, ratios: Tensor) -> Tensor:
        """(n,) ratios -> (n,) 0 where few tokens are enough, 1 where all are needed; training keeps the ratios."""
        known = torch.cat([self.latest, ratios.float()])
        limit = torch.nanquantile(known, self.settings.percentile / 100)
        if self.training:
            self.latest = known[-len(self.latest) :]
        return (ratios >= limit).long()

    def count(self, batch: Batch) -> float:
        """Documents, of each of which one tile is probed, those without an image included; or all tiles."""
        return float(tile_count(batch) if self.settings.probe == "image" else batch_documents(batch)[1])

    def flops(self, cost: ModelFlops) -> ModelFlops:
        """The decoder reads a batch twice, or three times, forward alone; the router's own work is not counted."""
        times = 3.0 if self.frozen else 2.0
        parts = {name: getattr(cost, name) * times for name in ("token", "pair", "supervised")}
        return replace(cost, **parts)

    def _probed(self, documents: Tensor) -> Tensor:
        """(tiles,) which tiles get few tokens while ratios are measured."""
        if self.settings.probe == "image":
            return torch.ones(len(documents), dtype=torch.bool)
        generator = None if self.training else torch.Generator().manual_seed(0)
        _, counts = documents.unique_consecutive(return_counts=True)
        chosen = counts.cumsum(0) - counts + (torch.rand(len(counts), generator=generator) * counts).long()
        return torch.zeros(len(documents), dtype=torch.bool).index_fill(0, chosen, True)

    def _ratios(self, model: InternVL, batch: Batch, images: Features, probed: Tensor) -> Tensor:
        """(documents,) the loss with few tokens over that with all, or alone without a reference; float32."""
        documents, count = batch_documents(batch)
        owners = documents[:, 1:][batch.labels[:, 1:] != IGNORE]
        head = model.language_model.lm_head
        whole = states_of(model, batch, model.project_patches(images.patches))
        few = states_of(model, shortened(batch, probed, model), project_routed(model, images.patches, probed))
        if not self.frozen:
            return _means(divergences(whole, head, few, head), owners, count)
        reference = self.frozen["reference"]
        wanted = reference.states(batch)
        losses = [_means(divergences(wanted, reference.head, states, head), owners, count) for states in (few, whole)]
        return losses[0] / losses[1].clamp(min=LEAST)


def _means(values: Tensor, owners: Tensor, count: int) -> Tensor:
    """(n,) values of supervised tokens -> (count,) their means by owner; 0 for one without tokens."""
    places = owners.to(values.device)
    sums = values.new_zeros(count).index_add(0, places, values)
    return sums / values.new_zeros(count).index_add(0, places, torch.ones_like(values)).clamp(min=1)
