"""Packing samples up to two budgets, decoder tokens and encoder tiles, from their sizes alone.

The decoder reads the tokens of a pack as one row, the encoder its tiles as one batch; which budget binds depends on the
mix, and what a pack leaves of it is lost. Two ways: best-fit decreasing over a window of samples ("fit"), and the
greedy buffer of the official data set ("buffer"; facts: ``internvl/train/dataset_packed.py``). Both are pure functions
of sizes, budgets and seed. ``bench/packing.py`` compares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WAITING = 20  # packs that the official buffer keeps open


@dataclass(frozen=True, kw_only=True, eq=False)
class Packs:
    """Packs of samples, as positions in the arrays of their sizes; none is empty."""

    members: np.ndarray  # int64, pack after pack
    ends: np.ndarray  # int64, where each pack ends in ``members``

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.members[self.ends[pack - 1] if pack else 0 : self.ends[pack]]

    def sums(self, sizes: np.ndarray) -> np.ndarray:
        """(packs,) from a size of each sample."""
        return np.diff(np.concatenate([[0], np.cumsum(sizes[self.members])])[np.concatenate([[0], self.ends])])


def pack(
    tokens: np.ndarray, tiles: np.ndarray, *, max_tokens: int, max_tiles: int, method: str = "fit", seed: int = 0
) -> Packs:
    """Put every sample into one pack, in an order shuffled by ``seed``; entries of 0 tokens are no samples.

    A sample of more than ``max_tiles`` has a pack of its own; ValueError where one has more than ``max_tokens``.
    """
    tokens, tiles = np.asarray(tokens, dtype=np.int64), np.asarray(tiles, dtype=np.int64)
    if len(tokens) and tokens.max() > max_tokens:
        worst = int(tokens.argmax())
        raise ValueError(
            f"sample {worst} has {tokens[worst]:,} tokens, more than the {max_tokens:,} of a pack; shorten it or raise "
            "pack.tokens"
        )
    make = _fit if method == "fit" else _buffer
    packs = list(make(tokens, tiles, max_tokens, max_tiles))
    order = np.random.default_rng(seed).permutation(len(packs)).tolist()
    members = [place for number in order for place in packs[number]]
    ends = np.cumsum([len(packs[number]) for number in order], dtype=np.int64)
    return Packs(members=np.array(members, dtype=np.int64), ends=ends)


def _fit(tokens: np.ndarray, tiles: np.ndarray, max_tokens: int, max_tiles: int) -> Iterator[list[int]]:
    """Best-fit decreasing: the largest sample first, into the pack that it fills most.

    Large is what takes much of both budgets: a sample of many tiles has many tokens, and text alone fills what is left.
    """
    share = tokens / max_tokens + tiles / max_tiles
    left_tokens, left_tiles = np.empty(len(tokens), dtype=np.int64), np.empty(len(tokens), dtype=np.int64)
    packs: list[list[int]] = []
    for place in np.lexsort((np.arange(len(tokens)), -share)).tolist():
        own_tokens, own_tiles = tokens[place], tiles[place]
        if own_tiles > max_tiles and own_tokens:
            yield [place]
        if own_tiles > max_tiles or not own_tokens:
            continue
        count = len(packs)
        after_tokens, after_tiles = left_tokens[:count] - own_tokens, left_tiles[:count] - own_tiles
        room = after_tokens / max_tokens + after_tiles / max_tiles
        room[(after_tokens < 0) | (after_tiles < 0)] = np.inf
        best = int(room.argmin()) if count else 0
        if not count or room[best] == np.inf:
            best = count
            packs.append([])
            left_tokens[best], left_tiles[best] = max_tokens, max_tiles
        packs[best].append(place)
        left_tokens[best] -= own_tokens
        left_tiles[best] -= own_tiles
    yield from packs


def _buffer(tokens: np.ndarray, tiles: np.ndarray, max_tokens: int, max_tiles: int) -> Iterator[list[int]]:
    """The official greedy buffer, without overflow; text alone counts no tile here, there one.

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
    """Which packs of a step each process takes, the heaviest first: equal numbers, or one more or less.

    The most tiles that a process has are as few as swaps can make them, then its most tokens. Tiles come first: in the
    1B the encoder is three quarters of the work where it trains. The n-th packs of all processes are about as heavy,
    since sharded processes wait for each other at every micro batch.
    """
    heaviest = np.lexsort((-tokens, -tiles))
    owner = np.zeros(len(tokens), dtype=np.int64)
    for first in range(0, len(tokens), processes):
        dealt = heaviest[first : first + processes]
        taken = heaviest[:first]
        loads = [np.bincount(owner[taken], cost[taken], processes) for cost in (tokens, tiles)]
        owner[dealt] = np.lexsort(loads)[: len(dealt)]
    _swap(owner, tiles, np.zeros_like(tiles), processes)
    _swap(owner, tokens, tiles, processes)
    return [heaviest[owner[heaviest] == process].tolist() for process in range(processes)]


def _swap(owner: np.ndarray, cost: np.ndarray, kept: np.ndarray, processes: int) -> None:
    """Swap packs between the process that has most of a cost and others, as long as that lowers the most.

    The most that any process has of ``kept`` does not grow. Every swap lowers the sum of squares, so this ends.
    """
    while True:
        loads, others = (np.bincount(owner, of, processes) for of in (cost, kept))
        worst = int(loads.argmax())
        mine, theirs = np.flatnonzero(owner == worst), np.flatnonzero(owner != worst)
        given, given_kept = (of[mine][:, None] - of[theirs] for of in (cost, kept))
        after = np.maximum(loads[worst] - given, loads[owner[theirs]] + given).astype(float)
        after_kept = np.maximum(others[worst] - given_kept, others[owner[theirs]] + given_kept)
        after[after_kept > others.max()] = np.inf
        if not after.size or after.min() >= loads[worst]:
            return
        row, column = divmod(int(after.argmin()), len(theirs))
        owner[mine[row]], owner[theirs[column]] = owner[theirs[column]], worst


def fill(packs: Packs, tokens: np.ndarray, tiles: np.ndarray, *, max_tokens: int, max_tiles: int) -> float:
    """Share of the binding budget that the packs use."""
    count = max(1, len(packs))
    members = packs.members
    return float(max(tokens[members].sum() / (count * max_tokens), tiles[members].sum() / (count * max_tiles)))
