"""Keys and values of earlier tokens: of a batch whose rows go in step, or of slots that come and go by themselves.

Slots lie in slabs: buffers of a few rows of one capacity, which are made once and never move. A forward over slots is
one packed row of tokens without padding. The single tokens of answers in a slab attend together, over the rows between
the first and the last of them; every longer piece attends by itself. Nothing is copied when a slot opens or closes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mini_internvl.model.attention import AttentionPlan, attend, plan_attention
from mini_internvl.model.config import DecoderConfig

SLAB_ROWS = 16  # slots of a slab: as many attend together
SMALLEST = 64  # tokens of the smallest slots


class KVCache:
    """Rotated keys and values of every layer, in buffers made once for the longest answer."""

    def __init__(self, config: DecoderConfig, batch: int, capacity: int, *, dtype: torch.dtype, device: torch.device):
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) after what is there; return everything up to and including it, (B, K, S, D)."""
        end = self.length + k.shape[2]
        assert end <= self.capacity, f"KV cache of {self.capacity} tokens is full"
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Slab:
    """(layers, rows, K, capacity, D) keys and values; zeros at first: what is masked must still be a number."""

    def __init__(self, config: DecoderConfig, rows: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (config.layers, rows, config.kv_heads, capacity, config.head_dim)
        self.keys, self.values = _zeros(shape, dtype, device), _zeros(shape, dtype, device)
        self.capacity = capacity
        self.lengths = [0] * rows
        self.free = set(range(rows))


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU memory is only taken where something is written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    count = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, np.uint8)).view(dtype).view(shape)


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """Tokens that a forward reads behind what a slot holds."""

    slot: int
    count: int
    prompt_length: int  # tokens of the whole prompt, on which the rotation may depend


class SlotCache:
    """Slots for up to ``most_tokens`` in all; a slot that alone needs more gets it."""

    def __init__(self, config: DecoderConfig, *, most_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.most_tokens, self.dtype, self.device = config, most_tokens, dtype, device
        self._slabs: dict[int, list[Slab]] = {}  # by capacity
        self._places: dict[int, tuple[Slab, int]] = {}  # slab and row of each slot
        self._numbers = 0

    @property
    def free_tokens(self) -> int:
        return self.most_tokens - sum(slab.capacity for slab, _ in self._places.values())

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        slab, row = self._places[slot]
        return slab.lengths[row]

    def slabs(self) -> set[Slab]:
        """Those with slots."""
        return {slab for slab, _ in self._places.values()}

    def place_of(self, slot: int) -> tuple[Slab, int]:
        """The slab of a slot, and its row there."""
        return self._places[slot]

    def open(self, most_tokens: int) -> int:
        """A new slot with room for so many tokens."""
        capacity = _capacity(most_tokens)
        slabs = self._slabs.setdefault(capacity, [])
        slab = next((slab for slab in slabs if slab.free), None)
        if slab is None:
            rows = max(1, min(SLAB_ROWS, self.most_tokens // 8 // capacity))
            slab = Slab(self.config, rows, capacity, self.dtype, self.device)
            slabs.append(slab)
        row = min(slab.free)
        slab.free.remove(row)
        for held in (slab.keys, slab.values):
            held[:, row, :, : slab.lengths[row]] = 0  # what another left might be no number
        slab.lengths[row] = 0
        self._numbers += 1
        self._places[self._numbers] = slab, row
        return self._numbers

    def fork(self, slot: int, count: int, most_tokens: int) -> int:
        """A new slot that begins with the first ``count`` tokens of another."""
        assert 0 < count <= min(self.length(slot), most_tokens)
        new = self.open(most_tokens)
        (old_slab, old_row), (slab, row) = self._places[slot], self._places[new]
        slab.keys[:, row, :, :count] = old_slab.keys[:, old_row, :, :count]
        slab.values[:, row, :, :count] = old_slab.values[:, old_row, :, :count]
        slab.lengths[row] = count
        return new

    def close(self, slot: int) -> None:
        """Give a slot's memory back; a slab without slots goes."""
        slab, row = self._places.pop(slot)
        slab.free.add(row)
        if len(slab.free) == len(slab.lengths):
            self._slabs[slab.capacity].remove(slab)

    def order(self, new: Sequence[NewTokens]) -> list[int]:
        """Places of pieces in the order in which :meth:`place` takes them: single tokens first, slab by slab."""
        slabs = {id(slab): number for number, slab in enumerate(s for group in self._slabs.values() for s in group)}

        def key(place: int) -> tuple[int, int, int]:
            slab, row = self._places[new[place].slot]
            return (0, slabs[id(slab)], row) if new[place].count == 1 else (1, place, 0)

        return sorted(range(len(new)), key=key)

    def place(self, new: Sequence[NewTokens]) -> SlotForward:
        """What one forward over such tokens needs; in the order of :meth:`order`."""
        return SlotForward([(*self._places[one.slot], one) for one in new], self.config.sliding_window, self.device)


def _capacity(tokens: int) -> int:
    """Tokens of a slot that has room for so many: 64, 96, 128, 192, 256, 384, ..."""
    capacity = SMALLEST
    while capacity < tokens:
        if tokens <= capacity // 2 * 3:
            return capacity // 2 * 3
        capacity *= 2
    return capacity


@dataclass(frozen=True, kw_only=True)
class _Together:
    """Single tokens of slots in one slab."""

    slab: Slab
    first: int  # row of the slab; ``end``: behind the last
    end: int
    rows: Tensor  # (n,) of each token
    positions: Tensor  # (n,) place of each token in its row
    longest: int
    mask: Tensor | None  # (end - first, 1, 1, longest)

    @property
    def count(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class _Alone:
    """Several tokens of one slot."""

    slab: Slab
    row: int
    start: int
    count: int
    plan: AttentionPlan


class SlotForward:
    """One packed row of T tokens of several slots, while a forward reads them."""

    def __init__(self, placed: Sequence[tuple[Slab, int, NewTokens]], window: int | None, device: torch.device) -> None:
        self._placed = placed
        positions: list[int] = []
        lengths: list[int] = []
        for slab, row, new in placed:
            start = slab.lengths[row]
            assert start + new.count <= slab.capacity, f"a slot of {slab.capacity} tokens is full"
            positions += range(start, start + new.count)
            lengths += (max(new.prompt_length, place + 1) for place in range(start, start + new.count))
        self.position_ids = torch.tensor([positions], device=device)  # (1, T)
        self.lengths = torch.tensor([lengths], device=device)  # (1, T) as rotary_tables takes them
        self.last = torch.tensor([new.count for _, _, new in placed], device=device).cumsum(0) - 1  # (B,)
        self._parts: list[_Together | _Alone] = []
        singles: list[tuple[Slab, int]] = []
        for slab, row, new in placed:
            if singles and (new.count > 1 or slab is not singles[0][0]):
                self._parts.append(_together(singles, window, device))
                singles = []
            if new.count == 1:
                singles.append((slab, row))
                continue
            start = slab.lengths[row]
            own = torch.arange(start, start + new.count, device=device)[None]
            plan = plan_attention(own, total=start + new.count, window=window)
            self._parts.append(_Alone(slab=slab, row=row, start=start, count=new.count, plan=plan))
        if singles:
            self._parts.append(_together(singles, window, device))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store keys and values (1, K, T, D) of a layer; (1, H, T, D) of what the queries see in their slots."""
        found: list[Tensor] = []
        start = 0
        for part in self._parts:
            new = slice(start, start + part.count)
            one = _attend_together if isinstance(part, _Together) else _attend_alone
            found.append(one(part, layer, q[:, :, new], k[:, :, new], v[:, :, new]))  # type: ignore[arg-type]
            start = new.stop
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    def advance(self) -> None:
        """Count the tokens as held; until then an error leaves the slots as they were."""
        for slab, row, new in self._placed:
            slab.lengths[row] += new.count


class SlabForward(SlotForward):
    """One token for each row of a slab, in buffers that stay where they are, so that it can be recorded and repeated.

    ``told`` is (4, rows) int64: a token's id, its place in the row, the length that its rotation goes by, and 1 where a
    token is meant. Other rows go along: they look at their place 0 and keep what they hold.
    """

    def __init__(self, slab: Slab, window: int | None, device: torch.device) -> None:
        rows = len(slab.lengths)
        self.slab, self._window = slab, window
        self.told = torch.zeros(4, rows, dtype=torch.int64, device=device)
        self.ids, self.position_ids, self.lengths = self.told[:1], self.told[1:2], self.told[2:3]  # (1, rows) each
        self._rows = torch.arange(rows, device=device)
        self._columns = torch.arange(slab.capacity, device=device)
        self._plan = AttentionPlan()

    def begin(self) -> None:
        """Work out which keys each row sees, for all layers."""
        places = self.told[1, :, None]
        seen = self._columns <= places
        if self._window is not None:
            seen = seen & (self._columns > places - self._window)
        self._plan = AttentionPlan(mask=seen[:, None, None])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        meant, place = self.told[3, :, None, None].bool(), (self._rows, slice(None), self.told[1])
        keys, values = self.slab.keys[layer], self.slab.values[layer]
        for held, new in ((keys, k), (values, v)):
            held[place] = torch.where(meant, new[0].transpose(0, 1), held[place])
        return attend(q[0].transpose(0, 1)[:, :, None], keys, values, self._plan)[:, :, 0].transpose(0, 1)[None]

    def advance(self) -> None:
        """Whoever tells the tokens counts them."""


def _together(singles: Sequence[tuple[Slab, int]], window: int | None, device: torch.device) -> _Together:
    slab, rows = singles[0][0], [row for _, row in singles]
    first, end = min(rows), max(rows) + 1
    positions = [slab.lengths[row] for row in rows]
    longest = max(positions) + 1
    mask = None
    if len(rows) < end - first or min(positions) + 1 < longest or (window is not None and longest > window):
        last = torch.zeros(end - first, 1, dtype=torch.int64)  # a row between that is not asked sees its first place
        last[torch.tensor(rows) - first, 0] = torch.tensor(positions)
        columns = torch.arange(longest)
        seen = columns <= last
        if window is not None:
            seen &= columns > last - window
        mask = seen[:, None, None].to(device)
    return _Together(
        slab=slab,
        first=first,
        end=end,
        rows=torch.tensor(rows, device=device),
        positions=torch.tensor(positions, device=device),
        longest=longest,
        mask=mask,
    )


def _attend_together(part: _Together, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys, values = part.slab.keys[layer], part.slab.values[layer]
    keys[part.rows, :, part.positions] = k[0].transpose(0, 1)
    values[part.rows, :, part.positions] = v[0].transpose(0, 1)
    asked = q[0].transpose(0, 1)  # (n, H, D)
    whole = part.count == part.end - part.first
    if not whole:
        asked = asked.new_zeros(part.end - part.first, *asked.shape[1:]).index_copy(0, part.rows - part.first, asked)
    seen = slice(part.first, part.end), slice(None), slice(part.longest)
    plan = None if part.mask is None else AttentionPlan(mask=part.mask)
    x = attend(asked[:, :, None], keys[seen], values[seen], plan)[:, :, 0]
    return (x if whole else x[part.rows - part.first]).transpose(0, 1)[None]


def _attend_alone(part: _Alone, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    end = part.start + part.count
    keys, values = part.slab.keys[layer, part.row], part.slab.values[layer, part.row]
    keys[:, part.start : end] = k[0]
    values[:, part.start : end] = v[0]
    return attend(q, keys[None, :, :end], values[None, :, :end], part.plan)
