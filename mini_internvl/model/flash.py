"""Flash models (3.5): a router gives each tile 256 visual tokens, or 64 where little is lost by it.

One query attends to the patches of a tile, four times, and four residual MLPs say how likely few tokens are enough. A
tile gets few where that is above a quantile of the conversation's tiles and not below a fixed threshold; its remaining
placeholders leave the prompt. So an image of one tile, which is its own quantile, always keeps all.

Unusual: of four attentions the original runs the first once and the second three times, with the second norm; the other
two are stored and never used. They are so here, too. ``forward`` of a whole model and training give every tile all its
tokens, as in the original; the engine routes. ``model.routing`` gives a router to a model that has none.
Source: ``modeling_internvl_chat.py`` of the Flash checkpoints; arXiv 2510.12793 (there the router is called ViR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mini_internvl.model.config import FlashConfig, VLMConfig

if TYPE_CHECKING:
    from mini_internvl.model.vlm import InternVL

HEADS = 16  # of the pooling's attentions, whatever the encoder has
DROPOUT = 0.1
TILES_TOGETHER = 64  # tiles that the encoder reads at a time


class CrossAttentionPooling(nn.Module):
    """(N, P, D) patches of tiles -> (N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_token = nn.Parameter(torch.zeros(1, width))
        for number in (1, 2, 3, 4):
            self.add_module(f"attn{number}", nn.MultiheadAttention(width, HEADS, batch_first=True))
            self.add_module(f"norm{number}", nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query_token.expand(len(x), 1, -1)
        for number in (1, 2, 2, 2):
            attended, _ = self.get_submodule(f"attn{number}")(query, x, x, need_weights=False)
            query = self.get_submodule(f"norm{number}")(attended)
        return query[:, 0]


class Gating(nn.Module):
    """(N, D) -> (N, 2): the probabilities that few tokens are enough, and that all are needed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for number in (1, 2, 3, 4):
            self.add_module(f"block{number}", self._block(width))
        self.gate = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))

    @staticmethod
    def _block(width: int) -> nn.Sequential:
        wide, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        return nn.Sequential(wide, nn.GELU(), nn.Dropout(DROPOUT), narrow, nn.Dropout(DROPOUT), nn.LayerNorm(width))

    def logits(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, 2), whose softmax ``forward`` gives."""
        for number in (1, 2, 3, 4):
            x = x + self.get_submodule(f"block{number}")(x)
        scores: Tensor = self.gate(x)
        return scores

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).softmax(-1)


def short_projector(config: VLMConfig) -> nn.Sequential:
    """The projector of tiles with few tokens: as wide again, and a layer deeper."""
    wide, hidden = int(config.projector_input / config.downsample_ratio**2), config.llm.hidden_size
    return nn.Sequential(
        nn.LayerNorm(wide),
        nn.Linear(wide, 2 * hidden),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(2 * hidden, 2 * hidden),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(2 * hidden, hidden),
    )


def choose_short(probabilities: Tensor, flash: FlashConfig) -> Tensor:
    """(N,) of the tiles of one conversation -> (N,) whether a tile gets few tokens."""
    probabilities = probabilities.float()
    return (probabilities > probabilities.quantile(flash.relative)) & (probabilities >= flash.absolute)


def read_thresholds(text: str, config: VLMConfig) -> FlashConfig:
    """``off``, or ``RELATIVE,ABSOLUTE`` such as ``0.5,0.4``; ValueError for other text, or a model without a router."""
    if config.flash is None:
        raise ValueError("this model has no router, so there are no thresholds to set; only Flash models have one")
    if text == "off":
        return replace(config.flash, enabled=False)
    try:
        relative, absolute = map(float, text.split(","))
    except ValueError:
        raise ValueError(f'"{text}" is no pair of thresholds; write off, or two numbers such as 0.5,0.4') from None
    return FlashConfig(relative=relative, absolute=absolute)


def encode_routed(model: InternVL, pixel_values: Tensor, flash: FlashConfig) -> tuple[Tensor, list[bool]]:
    """(N, 3, S, S) tiles of one conversation -> (visual tokens, 1, LLM hidden), and which tiles have few."""
    parts = pixel_values.to(model.device, model.vision_model.dtype).split(TILES_TOGETHER)
    patches = torch.cat([model.vision_model(part, model.config.select_layer)[:, 1:] for part in parts])
    pooled = [model.pooling_before_gating(part) for part in patches.split(TILES_TOGETHER)]
    short = choose_short(model.gating(torch.cat(pooled))[:, 0], flash)
    return project_routed(model, patches, short), short.tolist()


def project_routed(model: InternVL, patches: Tensor, short: Tensor) -> Tensor:
    """(N, P, D) patches of tiles, (N,) which of them get few tokens -> (visual tokens, 1, LLM hidden), in order."""
    rows: list[Tensor] = [patches.new_empty(0)] * len(patches)
    for few in (False, True):
        places = (short == few).nonzero()[:, 0]
        tokens = model.project_patches(patches[places.to(patches.device)], short=few)
        for place, own in zip(places.tolist(), tokens, strict=True):
            rows[place] = own
    return torch.cat(rows)[:, None]


def kept_places(ids: Tensor, image_token: int, full: int, few: int, short: Tensor) -> Tensor:
    """Token ids of prompts, row by row -> of the same shape, whether an id stays where tiles get few tokens.

    A tile's placeholders are ``full`` ids in a row; of a tile that is ``short``, (N,) in order, the first ``few`` stay.
    """
    flat = ids.flatten()
    seen = flat == image_token
    number = seen.cumsum(0) - 1
    assert int(seen.sum()) == full * len(short), f"{int(seen.sum())} placeholders for {len(short)} tiles"
    beyond = number % full >= few
    own = short.repeat_interleave(full)[number[seen]]
    kept = torch.ones_like(seen)
    kept[seen] = ~(beyond[seen] & own)
    return kept.view(ids.shape)


def cut_placeholders(ids: Sequence[int], image_token: int, full: int, few: int, short: Sequence[bool]) -> list[int]:
    """Token ids of a prompt without the placeholders that its tiles with few tokens do not need."""
    kept = kept_places(torch.tensor(ids), image_token, full, few, torch.tensor(short, dtype=torch.bool))
    return [number for number, stays in zip(ids, kept.tolist(), strict=True) if stays]
