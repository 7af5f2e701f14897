"""What the rows of a source cost, in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mini_internvl.data.sources import RowFiles

COLUMNS = ("smallest", "median", "mean", "95%", "largest")
Spread = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Sizes of the rows that can be trained on."""

    rows: int
    usable: int
    shortened: int  # of the usable ones
    images: int
    tokens: int
    supervised: int
    tiles: int
    visual: int  # tokens that stand for tiles
    spreads: Mapping[str, Spread]  # of tokens, supervised tokens, tiles and images of a row

    @property
    def tiles_per_image(self) -> float:
        return self.tiles / self.images if self.images else 0.0


def spread(values: np.ndarray) -> Spread:
    """Five numbers of some values; none where there are no values."""
    if not len(values):
        return {}
    found = (values.min(), np.median(values), values.mean(), np.percentile(values, 95), values.max())
    return {name: float(value) for name, value in zip(COLUMNS, found, strict=True)}


def summarise(rows: RowFiles, images: Sequence[np.ndarray], tokens_per_tile: int) -> Summary:
    """Of rows that were measured; ``images`` tells how many each row of each file has."""
    sizes = np.concatenate([np.asarray(file.sizes, np.int64) for file in rows.files])
    count = np.concatenate([np.asarray(one, np.int64) for one in images])
    good = sizes[:, 0] > 0
    tokens, supervised, tiles = sizes[good].T
    return Summary(
        rows=len(sizes),
        usable=int(good.sum()),
        shortened=sum(file.shortened for file in rows.files),
        images=int(count[good].sum()),
        tokens=int(tokens.sum()),
        supervised=int(supervised.sum()),
        tiles=int(tiles.sum()),
        visual=int(tiles.sum()) * tokens_per_tile,
        spreads={
            "tokens": spread(tokens),
            "supervised tokens": spread(supervised),
            "tiles": spread(tiles),
            "images": spread(count[good]),
        },
    )
