"""A model and its losses as one module: all that the loop calls."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mini_internvl import plugins
from mini_internvl.inputs.tiles import normalise
from mini_internvl.model.flops import ModelFlops, count_flops
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import FLASH_PARTS, StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train.parts import part_modules

if TYPE_CHECKING:
    from mini_internvl.train.features import FeatureStore


def tile_count(batch: Batch) -> int:
    """Tiles of a batch's images, those included whose features were kept."""
    return sum(image.tiles for image in batch.images) if batch.images else len(batch.tiles)


class ImageFeatures:
    """What the losses of a batch read of its images; the encoder runs once, and only when it is asked for.

    ``last`` is how many of its last hidden states will be asked for.
    """

    def __init__(self, model: InternVL, tiles: Tensor, last: int = 0) -> None:
        self.model, self.tiles, self.last = model, tiles, last

    @cached_property
    def vision(self) -> Tensor:
        """(tiles, 1 + patches, hidden) of the encoder."""
        blocks, chosen = len(self.model.vision_model.encoder.layers), self.model.config.select_layer
        place = chosen % (blocks + 1) - (blocks + 1)
        if -self.last <= place:
            return self.last_states[place]
        return self.model.vision_model(self._pixels, chosen)

    @cached_property
    def last_states(self) -> list[Tensor]:
        """(tiles, 1 + patches, hidden) after each of the encoder's ``last`` blocks."""
        return self.model.vision_model.last_states(self._pixels, self.last)

    @property
    def _pixels(self) -> Tensor:
        return normalise(self.tiles).to(self.model.vision_model.dtype)

    @cached_property
    def visual_tokens(self) -> Tensor:
        """(tiles, tokens per tile, LLM hidden)."""
        return self.model.project(self.vision)


class Features(ImageFeatures):
    """What the losses of a batch read of its images and tokens: the decoder runs once, as deep as they need.

    ``depths`` are the numbers of blocks after which hidden states will be asked for, ``None`` for all of them.
    """

    def __init__(
        self,
        model: InternVL,
        batch: Batch,
        depths: Iterable[int | None],
        store: FeatureStore | None = None,
        zero: Tensor | None = None,
        last: int = 0,
    ) -> None:
        """``zero`` is added to what the decoder reads."""
        super().__init__(model, batch.tiles, last)
        self.batch, self.depths, self.store = batch, {self._blocks(depth) for depth in depths}, store
        self.zero = zero

    @cached_property
    def visual_tokens(self) -> Tensor:
        """(tiles, tokens per tile, LLM hidden), of kept features where the batch's images are named."""
        if self.store is not None and self.batch.images:
            return self.store.visual_tokens(self.model, self.batch)
        return self.model.project(self.vision)

    def hidden(self, layers: int | None = None) -> Tensor:
        """(B, T, hidden) after so many decoder blocks and the final norm."""
        return self._states[self._blocks(layers)]

    def _blocks(self, layers: int | None) -> int:
        return len(self.model.language_model.layers) if layers is None else layers

    @cached_property
    def patches(self) -> Tensor:
        """(tiles, patches, hidden) of the encoder, of kept features where the batch's images are named."""
        if self.store is not None and self.batch.images:
            return self.store.patches(self.model, self.batch).to(self.model.vision_model.dtype)
        return self.vision[:, 1:]

    @cached_property
    def _states(self) -> dict[int, Tensor]:
        batch = self.batch
        depths = sorted(self.depths)
        embeddings = self.model.embed(batch.input_ids, self.visual_tokens if tile_count(batch) else None)
        states = self.model.language_model.states(
            embeddings if self.zero is None else embeddings + self.zero,
            depths,
            position_ids=batch.position_ids,
            segment_ids=batch.segment_ids,
            document_ids=batch.document_ids,
        )  # no mask: padding stands on the right, where causal attention does not look
        return dict(zip(depths, states, strict=True))


class Learner(nn.Module):
    """A model and the losses of a stage: the one unit that the loop calls, and that can be wrapped or compiled."""

    def __init__(self, model: InternVL, stage: StageRecipe) -> None:
        super().__init__()
        self.model, self.loss = model, nn.ModuleDict()
        self.store: FeatureStore | None = None  # of kept features, where the stage keeps them
        self.sharded = False  # whether its modules are gathered from other processes as they are reached
        self.weights: dict[str, float] = {}
        for name, settings in stage.loss_settings().items():
            key, loss = plugins.short_name(name), plugins.find("train.losses", name).Loss
            self.loss[key], self.weights[key] = loss(settings, model.config), settings.weight
        self.loss.to(model.device)
        for module in self.frozen():
            module.requires_grad_(False).eval()
            getattr(module, "place", module.to)(model.device)
        self._freeze_unreached(stage)

    def frozen(self) -> Iterator[Any]:
        """Modules of the losses that neither train nor are saved, such as a teacher."""
        for loss in self.loss.values():
            yield from getattr(loss, "frozen", {}).values()

    def flops(self, checkpointed: Collection[str] = ()) -> ModelFlops:
        """What each thing costs that a batch holds, the losses' own modules included; see ``model.flops``."""
        cost = count_flops(self.model, checkpointed)
        own: list[Any] = list(self.loss.values())
        for loss in own:
            if hasattr(loss, "flops"):
                cost = loss.flops(cost)
        read = [loss.tile_flops() for loss in own if hasattr(loss, "tile_flops")]
        return replace(cost, encoder=sum(read, cost.encoder))

    def _freeze_unreached(self, stage: StageRecipe) -> None:
        """Freeze what no loss reaches in parts that train: distributed processes would wait for its gradient."""
        parts = part_modules(self.model)
        reached: set[int] = set()
        losses: list[Any] = list(self.loss.values())
        for name, loss in zip(stage.loss_settings(), losses, strict=True):
            reach = plugins.find("train.losses", name).REACHES
            every = (parameter for part in reach if part in parts for parameter in parts[part].parameters())
            reached |= {id(p) for p in (loss.reached(self.model) if hasattr(loss, "reached") else every)}
        for parameter in self.model.parameters():
            if id(parameter) not in reached:
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Learner:
        """As of any module; but a model of which nothing trains drops nothing."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            self.model.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``loss``, the weighted sum over the batch, and ``count``, what sums of the step are divided by."""
        if not batch.sample_ids:
            return {"loss": self._zero(batch), "count": torch.zeros((), dtype=torch.float64)}
        first, *auxiliary = self.loss
        blank = None if tile_count(batch) or not self.training else self._blank_image(batch)
        last = max(getattr(loss, "last_states", 0) for loss in self._asked())
        images = Features(self.model, batch, self._depths(), self.store, blank if self.sharded else None, last)
        total = self.loss[first](self.model, batch, images)
        if self.training:
            for name in auxiliary:
                total = total + self.weights[name] * self.loss[name](self.model, batch, images)
            total = total if blank is None else total + blank
            total = total + self._few_tokens_zero()
        return {"loss": total, "count": torch.tensor(self.count(batch), dtype=torch.float64)}

    def _depths(self) -> list[int | None]:
        """Of the hidden states that the losses ask for; none where none asks for the decoder."""
        return [loss.layers for loss in self._asked() if hasattr(loss, "layers")]

    def _asked(self) -> list[Any]:
        """The losses that are computed: where nothing trains, the first alone."""
        return list(self.loss.values()) if self.training else [next(iter(self.loss.values()))]

    def count(self, batch: Batch) -> float:
        """What the first loss counts in a batch."""
        first: Any = self.loss[next(iter(self.loss))]
        return float(first.count(batch)) if batch.sample_ids else 0.0

    def _zero(self, batch: Batch) -> Tensor:
        """0 that depends on everything that trains: a process without samples takes part in a step all the same.

        Encoder and decoder run in the order of any other batch, for shards are gathered as they are reached. So do
        their backward passes: FSDP2 reduces a block's gradients behind what its input came from, or where nothing asks
        for the input's gradient, at the very end.
        """
        zero = self._blank_image(batch)
        if depths := self._depths():
            features = Features(self.model, batch, depths, zero=zero if self.sharded else None)
            hidden = [features.hidden(depth) for depth in depths]
            zero = zero + sum(states.float().sum() for states in hidden) * 0.0
            if self.model.language_model.lm_head.weight.requires_grad:
                zero = zero + self.model.language_model.lm_head(hidden[0]).float().sum() * 0.0
        own = [parameter.float().sum() for parameter in self.loss.parameters() if parameter.requires_grad]
        return zero + sum(own) * 0.0 + self._few_tokens_zero()

    def _few_tokens_zero(self) -> Tensor | float:
        """0 that depends on what gives a tile few tokens: where it trains it gets a gradient though no tile has few."""
        parts = part_modules(self.model)
        every = (p for name in FLASH_PARTS if name in parts for p in parts[name].parameters())
        firsts = [parameter.flatten()[:1].float().sum() for parameter in every if parameter.requires_grad]
        return sum(firsts) * 0.0

    def _blank_image(self, batch: Batch) -> Tensor:
        """0 that depends on encoder and projector: in a batch of text alone they get a gradient too, on every rank."""
        parts = (self.model.vision_model, self.model.mlp1)
        if not (self.sharded or any(parameter.requires_grad for part in parts for parameter in part.parameters())):
            return torch.zeros((), device=self.model.device)
        blank = torch.zeros(1, *batch.tiles.shape[1:], dtype=torch.uint8, device=self.model.device)
        images = ImageFeatures(self.model, blank)
        reaches_tokens = self._depths() or self.sharded
        return (images.visual_tokens if reaches_tokens else images.vision).float().sum() * 0.0
