"""Fewer visual tokens without training: an image keeps those that differ most, and each stands for those like it.

The tokens of all tiles of an image are one set, so that empty tiles give more than full ones. The first token that is
kept is the farthest from their mean, each next one the farthest from all that are kept (the max-min rule of diversity,
arXiv 2503.02175); each kept token becomes the mean of itself and of the tokens nearest to it, so that none is lost
whole. Unusual: distances are between tokens as they are, without their common direction and not of unit length, so that
a token that says much counts for more. The question plays no part: an image's tokens serve every question about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Setting = float | int | str | None


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """How many visual tokens an image keeps."""

    share: float | None = None
    """Of its tokens; or ``None``, and ``number`` says how many."""
    number: int | None = None
    """Times the tiles of an image, those that a thumbnail adds counted."""
    rule: Literal["different", "random"] = "different"
    """Which are kept; random ones are what a rule is measured against."""
    seed: int = 0

    def __post_init__(self) -> None:
        assert (self.share is None) != (self.number is None), "either share or number"
        if (self.share is not None and not 0 < self.share <= 1) or (self.number is not None and self.number < 1):
            raise ValueError(
                f"visual_tokens is {self}; it must be a share such as 0.5 or 50%, or the tokens of a tile, such as 64"
            )

    def __str__(self) -> str:
        amount = f"{self.share:g}" if self.number is None else f"{self.number} a tile"
        return amount if self.rule == "different" else f"{amount} {self.rule} {self.seed}"

    def kept(self, tokens: int, tiles: int) -> int:
        """Tokens that are kept of an image that has so many."""
        wanted = round(tokens * self.share) if self.share is not None else tiles * (self.number or 0)
        return max(1, min(tokens, wanted))


def read_reduction(setting: Setting | Reduction) -> Reduction | None:
    """A setting as people write it: ``None`` keeps all, 0.5 and "50%" a share, 64 and "64" tokens a tile.

    ValueError for anything else.
    """
    if setting is None or isinstance(setting, Reduction):
        return setting
    text = str(setting).strip()
    try:
        if text.endswith("%"):
            return Reduction(share=float(text[:-1]) / 100)
        return Reduction(number=int(text)) if text.isdecimal() else Reduction(share=float(text))
    except ValueError:
        raise ValueError(
            f"visual_tokens is {setting!r}; it must be a share such as 0.5 or 50%, or the tokens of a tile, such as 64"
        ) from None


def reduce_tokens(tokens: Tensor, sizes: Sequence[tuple[int, int]], reduction: Reduction) -> tuple[Tensor, list[bool]]:
    """(K, hidden) visual tokens of several images -> (kept, hidden), and for each of the K whether its place is kept.

    ``sizes`` are (tokens, tiles) of each image, in order.
    """
    parts, places = [], list[bool]()
    for own, (count, tiles) in zip(tokens.split([count for count, _ in sizes]), sizes, strict=True):
        wanted = reduction.kept(count, tiles)
        if wanted == count:
            parts.append(own)
            places += [True] * count
            continue
        kept = _random(count, wanted, reduction.seed) if reduction.rule == "random" else _different(own, wanted)
        kept = kept.sort().values
        parts.append(own[kept] if reduction.rule == "random" else _merged(own, kept))
        chosen = set(kept.tolist())
        places += [place in chosen for place in range(count)]
    return torch.cat(parts) if parts else tokens, places


def _different(tokens: Tensor, wanted: int) -> Tensor:
    """(wanted,) places of the tokens (K, hidden) that are far from each other."""
    x = tokens.float() - tokens.float().mean(0)
    squares = x.square().sum(-1)
    distance, kept = torch.full_like(squares, math.inf), torch.empty(wanted, dtype=torch.int64, device=tokens.device)
    place = squares.argmax()
    for number in range(wanted):
        kept[number] = place
        distance = torch.minimum(distance, squares + squares[place] - 2 * (x @ x[place]))
        distance[place] = -math.inf  # rounding must not choose it again
        place = distance.argmax()
    return kept


def _random(count: int, wanted: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]


def _merged(tokens: Tensor, kept: Tensor) -> Tensor:
    """(kept, hidden) means of each kept token with the tokens (K, hidden) that are nearest to it."""
    x = tokens.float()
    nearest = torch.cdist(x, x[kept]).argmin(1)
    nearest[kept] = torch.arange(len(kept), device=kept.device)  # of equal tokens each stands for itself
    sums = torch.zeros(len(kept), x.shape[1], device=x.device).index_add_(0, nearest, x)
    return (sums / nearest.bincount(minlength=len(kept))[:, None]).to(tokens.dtype)
