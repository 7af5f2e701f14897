"""Packing samples up to two budgets, decoder tokens and encoder tiles, from their sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
    """Best-fit decreasing over both budgets, in an order shuffled by ``seed``; entries of 0 tokens are left out."""
    shares = np.maximum(tokens / max_tokens, tiles / max_tiles)
    open_tokens, open_tiles = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    packs: list[list[int]] = []
    for place in np.lexsort((np.arange(len(tokens)), -shares)).tolist():
        if not tokens[place]:
            continue
        left_tokens, left_tiles = open_tokens - tokens[place], open_tiles - tiles[place]
        left = np.where(
            (left_tokens >= 0) & (left_tiles >= 0), left_tokens / max_tokens + left_tiles / max_tiles, np.inf
        )
        best = int(left.argmin()) if len(left) else -1
        if best < 0 or not np.isfinite(left[best]):
            best = len(packs)
            packs.append([])
            open_tokens, open_tiles = np.append(open_tokens, max_tokens), np.append(open_tiles, max_tiles)
        packs[best].append(place)
        open_tokens[best] -= tokens[place]
        open_tiles[best] -= tiles[place]
    order = np.random.default_rng(seed).permutation(len(packs)).tolist()
    chosen = [packs[number] for number in order]
    members = np.array([place for members in chosen for place in members], dtype=np.int64)
    return Packs(members=members, ends=np.cumsum([len(members) for members in chosen], dtype=np.int64))


def balance(tokens: np.ndarray, tiles: np.ndarray, processes: int) -> list[list[int]]:
    """Which packs each process takes: about as many, with about as many tiles and then tokens."""
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [(0, 0, 0)] * processes
    most = -(-len(tokens) // processes)
    for place in np.lexsort((-tokens, -tiles)).tolist():
        free = [number for number in range(processes) if len(shares[number]) < most]
        taker = min(free, key=lambda number: loads[number])
        shares[taker].append(place)
        load = loads[taker]
        loads[taker] = load[0] + int(tiles[place]), load[1] + int(tokens[place]), load[2] + 1
    return [sorted(share) for share in shares]
