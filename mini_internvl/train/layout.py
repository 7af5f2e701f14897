"""Which samples make up a step, and in which groups: a pure function of the step's number.

Without packing, a step has ``batch_size`` samples, which follow each other; each process takes every n-th of them and
cuts them into micro batches. With packing, it has ``batch_size`` packs of the stage's plan, which the processes share
so that each has as many tiles and tokens to do; a pack is one row and one micro batch.

The plan is made of the samples' sizes, window by window, and kept in the run folder as indices: a run goes on with the
packs that it began with, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mini_internvl.data import DataError, packing
from mini_internvl.files import new_file
from mini_internvl.ranks import Ranks
from mini_internvl.records import Batch, Example
from mini_internvl.train.batches import blank_batch, micro_batches, packed_batch

if TYPE_CHECKING:
    from mini_internvl.train.data import MixedDataset


WINDOW = 256, 8192  # fewest and most samples that are packed together; between, as many as there are rows


class Plan:
    """The packs of a stage: which samples each holds, and what it costs."""

    def __init__(self, members: np.ndarray, ends: np.ndarray, tokens: np.ndarray, tiles: np.ndarray) -> None:
        self.members, self.ends = members, ends  # numbers of samples, pack after pack; where each pack ends
        self.tokens, self.tiles = tokens, tiles  # of each pack

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.members[self.ends[pack - 1] if pack else 0 : self.ends[pack]]


def make_plan(dataset: MixedDataset) -> Plan:
    """Pack as many samples as the steps of a stage take; its first packs do not depend on how many those are."""
    stage, asked = dataset.stage, dataset.stage.pack
    assert asked is not None, "the stage does not pack"
    window = min(max(sum(map(len, dataset.sources)), WINDOW[0]), WINDOW[1])
    found: list[packing.Packs] = []
    sizes: list[tuple[np.ndarray, np.ndarray]] = []
    count = start = 0
    while count < stage.steps * stage.batch_size:
        numbers = np.arange(start, start + window)
        dataset.extend(start + window)
        tokens, tiles = dataset.sizes(numbers)
        limits = {"max_tokens": asked.tokens, "max_tiles": asked.tiles}
        packs = packing.pack(tokens, tiles, **limits, method=asked.method, seed=dataset.seed + start)
        if not len(packs):
            raise DataError(f"stage {stage.name}: none of {window:,} samples can be used; see the run's quarantine")
        found.append(packs)
        sizes.append((tokens, tiles))
        count, start = count + len(packs), start + window
    wanted = stage.steps * stage.batch_size
    members = np.concatenate([packs.members + place * window for place, packs in enumerate(found)])
    before = np.cumsum([0, *(len(packs.members) for packs in found[:-1])])
    ends = np.concatenate([packs.ends + first for packs, first in zip(found, before, strict=True)])[:wanted]
    members = members[: ends[-1]]
    starts = np.concatenate([[0], ends[:-1]])
    tokens, tiles = (
        np.add.reduceat(np.concatenate([size[kind] for size in sizes])[members], starts) for kind in (0, 1)
    )
    return Plan(members, ends, tokens, tiles)


def kept_plan(dataset: MixedDataset, path: Path) -> Plan:
    """The plan of a run: the one that it keeps in ``path``, or a new one, whose first packs must be those of the kept.

    DataError: they are not, since data, budgets or this package have changed.
    """
    wanted = dataset.stage.steps * dataset.stage.batch_size
    names = ("members", "ends", "tokens", "tiles")
    if path.exists():
        with np.load(path) as kept:
            plan = Plan(*(kept[name] for name in names))
        if len(plan) == wanted:
            dataset.extend(int(plan.members.max()) + 1)
            return plan
    made = make_plan(dataset)
    if path.exists() and not all(
        np.array_equal(getattr(made, name)[: len(getattr(plan, name))], getattr(plan, name)) for name in names
    ):
        raise DataError(f"{path} holds other packs than this data and this recipe give; begin a new run")
    with new_file(path) as draft, draft.open("wb") as file:
        np.savez(file, **{name: getattr(made, name) for name in names})
    return made


class Layout:
    """The steps of a stage; ``image_size`` is that of its model."""

    def __init__(self, dataset: MixedDataset, plan: Plan | None = None, *, image_size: int = 448) -> None:
        self.stage, self.plan, self.image_size = dataset.stage, plan, image_size

    @property
    def samples_per_step(self) -> int:
        """About."""
        if self.plan is None:
            return self.stage.batch_size
        return max(1, round(len(self.plan.members) * self.stage.batch_size / len(self.plan)))

    def groups(self, step: int, ranks: Ranks) -> list[np.ndarray]:
        """Numbers of the samples that a process takes in a step (from 0); a group is a pack, or all of them."""
        first, size = step * self.stage.batch_size, self.stage.batch_size
        if self.plan is None:
            return [np.arange(first + ranks.rank, first + size, ranks.size)]
        packs = [self.plan[number] for number in range(first, first + size)]
        loads = self.plan.tokens[first : first + size], self.plan.tiles[first : first + size]
        return [packs[place] for place in packing.balance(*loads, ranks.size)[ranks.rank]]

    def batches(self, groups: Sequence[Sequence[Example]], ranks: Ranks) -> list[Batch]:
        """The micro batches of a step's examples, as many for every process."""
        share = -(-self.stage.batch_size // ranks.size)
        if self.plan is None:
            made = micro_batches(groups[0], self.stage.micro_batch)
            most = -(-share // self.stage.micro_batch)
        else:
            made = [packed_batch(examples) for examples in groups if examples]
            most = share
        least = most if ranks.size > 1 else 1
        return made + [blank_batch(self.image_size) for _ in range(least - len(made))]
