"""Packing samples up to two budgets, decoder tokens and encoder tiles, from their sizes alone.

The encoder reads the tiles of a pack as one batch, the decoder its tokens as one row; which budget binds depends on the
mix. What a pack leaves of both is lost. Two ways: best-fit decreasing over a window of samples ("fit"), and the greedy
buffer of the official data set ("buffer"; facts: ``internvl/train/dataset_packed.py``). ``bench/packing.py`` compares
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

WAITING = 20  # buffers that the official data set keeps open


@dataclass(frozen=True, kw_only=True, eq=False)
class Packs:
    """Packs of samples, as positions in the arrays of their sizes."""

    members: np.ndarray  # int64, pack after pack
    ends: np.ndarray  # int64, where each pack ends in ``members``

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.members[self.ends[pack - 1] if pack else 0 : self.ends[pack]]


def pack(
    tokens: np.ndarray, tiles: np.ndarray, *, max_tokens: int, max_tiles: int, method: str = "fit", seed: int = 0
) -> Packs:
    """Put every sample into one pack, in an order shuffled by ``seed``; entries of 0 tokens are no samples.

    A sample of more tiles than a pack may have shares it with text alone; ValueError for one of more tokens.
    """
    if len(tokens) and tokens.max() > max_tokens:
        worst = int(tokens.argmax())
        raise ValueError(f"sample {worst} has {tokens[worst]:,} tokens, more than the {max_tokens:,} of a pack")
    packs = list((_fit if method == "fit" else _buffer)(tokens, tiles, max_tokens, max_tiles))
    order = np.random.default_rng(seed).permutation(len(packs)).tolist()
    members = [place for number in order for place in packs[number]]
    ends = np.cumsum([len(packs[number]) for number in order], dtype=np.int64)
    return Packs(members=np.array(members, dtype=np.int64), ends=ends)


def _fit(tokens: np.ndarray, tiles: np.ndarray, max_tokens: int, max_tiles: int) -> Iterable[list[int]]:
    """Best-fit decreasing: the sample with the largest share of a budget first, into the pack that it fills most."""
    largest = np.maximum(tokens / max_tokens, tiles / max_tiles)
    left_tokens, left_tiles = np.empty(len(tokens), dtype=np.int64), np.empty(len(tokens), dtype=np.int64)
    packs: list[list[int]] = []
    for place in np.lexsort((np.arange(len(tokens)), -largest)).tolist():
        if not tokens[place]:
            continue
        count = len(packs)
        after_tokens, after_tiles = left_tokens[:count] - tokens[place], left_tiles[:count] - tiles[place]
        room = after_tokens / max_tokens + after_tiles / max_tiles
        room[(after_tokens < 0) | (after_tiles < 0)] = np.inf
        best = int(room.argmin()) if count else 0
        if not count or room[best] == np.inf:
            best = count
            packs.append([])
            left_tokens[best], left_tiles[best] = max_tokens, max(max_tiles, int(tiles[place]))
        packs[best].append(place)
        left_tokens[best] -= tokens[place]
        left_tiles[best] -= tiles[place]
    return packs


def _buffer(tokens: np.ndarray, tiles: np.ndarray, max_tokens: int, max_tiles: int) -> Iterable[list[int]]:
    """The official greedy buffer, without overflow.

    Open packs are kept in order of their tiles, most first, and a sample joins the first that has room. A pack leaves
    when one of its budgets is used up exactly, or, with most tiles, when more than ``WAITING`` are open.
    """
    waiting: list[tuple[int, int, list[int]]] = []  # tiles, tokens, members
    for place in np.flatnonzero(tokens).tolist():
        own_tiles, own_tokens = int(tiles[place]), int(tokens[place])
        joined: tuple[int, int, list[int]] = (own_tiles, own_tokens, [place])
        for number, (used_tiles, used_tokens, members) in enumerate(waiting):
            if used_tiles + own_tiles <= max_tiles and used_tokens + own_tokens <= max_tokens:
                del waiting[number]
                joined = (used_tiles + own_tiles, used_tokens + own_tokens, [*members, place])
                break
        if joined[0] >= max_tiles or joined[1] == max_tokens:
            yield joined[2]
            continue
        waiting.append(joined)
        waiting.sort(key=lambda pack: -pack[0])
        if len(waiting) > WAITING:
            yield waiting.pop(0)[2]
    yield from (members for _, _, members in waiting)


def balance(tokens: np.ndarray, tiles: np.ndarray, processes: int) -> list[list[int]]:
    """Which packs of a step each process takes: about as many, with about as many tiles, and then tokens.

    Tiles come first: in the 1B the encoder is three quarters of the work where it trains.
    """
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [(0, 0, 0)] * processes
    most = -(-len(tokens) // processes)
    for place in np.lexsort((-tokens, -tiles)).tolist():
        free = [number for number in range(processes) if len(shares[number]) < most]
        taker = min(free, key=lambda number: loads[number])
        shares[taker].append(place)
        used_tiles, used_tokens, count = loads[taker]
        loads[taker] = used_tiles + int(tiles[place]), used_tokens + int(tokens[place]), count + 1
    return [sorted(share) for share in shares]


def fill(packs: Packs, tokens: np.ndarray, tiles: np.ndarray, *, max_tokens: int, max_tiles: int) -> float:
    """Share of the binding budget that the packs use."""
    count = max(1, len(packs))
    members = packs.members
    return float(max(tokens[members].sum() / (count * max_tokens), tiles[members].sum() / (count * max_tiles)))
