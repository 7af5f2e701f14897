"""What the steps of a stage hold: the work of its samples, and the micro batches that take most memory.

Which samples make a step is settled by its number (``train.data``, ``train.layout``): where the sizes of all samples
are known, the micro batches are those of the run. Where data or tokenizer are not there, each sample is taken to be one
image of the most tiles with a short text, and each pack to be full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from mini_internvl.data.sources import Sizes, Source
from mini_internvl.model.config import VLMConfig
from mini_internvl.recipes import PackRecipe, StageRecipe
from mini_internvl.records import Batch, Example, Sample, Size
from mini_internvl.train.batches import micro_batches, packed_batch
from mini_internvl.train.data import MixedDataset, Process, Unusable
from mini_internvl.train.layout import make_plan
from mini_internvl.train.losses.answers import IGNORE

TEXT, ANSWER = 256, 64  # assumed tokens of text of a sample, and those of them that are supervised
LOOKED_AT, PACKED = 2_000_000, 16_384  # samples of a stage that are looked at, and packed, at most
PASSES = 16  # over the data that are looked at, at most


@dataclass(frozen=True, kw_only=True)
class Mean:
    """What a sample has, on average over those that a stage takes."""

    tokens: float
    supervised: float
    tiles: float
    pairs: float  # tokens that see a token


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatches:
    """The micro batches of a stage, as far as they are looked at."""

    members: np.ndarray  # int64, numbers of samples, one micro batch after the other
    ends: np.ndarray  # int64, where each ends
    costs: np.ndarray  # (micro batches, 3) int64: tokens, padding included, supervised tokens, tiles

    def __getitem__(self, number: int) -> np.ndarray:
        return self.members[self.ends[number - 1] if number else 0 : self.ends[number]]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The samples that a stage takes, whose sizes are known, on so many ``processes``."""

    stage: StageRecipe
    dataset: MixedDataset  # of the steps that are looked at; one that packs has the stage's packs as its steps
    told: str  # where the sizes come from, for people
    processes: int = 1
    full: Sequence[Example] = ()  # what each pack is assumed to hold; empty where the packs are those of the data
    missing: Sequence[str] = ()  # why other samples are not among them, for people
    different_tiles: float = math.inf  # tiles of different images at most, where that is known

    @cached_property
    def numbers(self) -> np.ndarray:
        """Of the samples that are looked at."""
        packs = self.stage.pack is not None and not self.full
        return self.micro_batches.members if packs else np.arange(len(self.dataset))

    @cached_property
    def sizes(self) -> np.ndarray:
        """(numbers, 3) int64: tokens, supervised tokens, tiles; 0 of a sample that cannot be used."""
        return self._sizes(self.numbers)

    @cached_property
    def mean(self) -> Mean:
        sizes = self.sizes.astype(np.float64)
        tokens, supervised, tiles = sizes.mean(0).tolist()
        pairs = float((sizes[:, 0] * (sizes[:, 0] + 1) / 2).mean())
        return Mean(tokens=tokens, supervised=supervised, tiles=tiles, pairs=pairs)

    @property
    def most(self) -> Size:
        """The most tokens, supervised tokens and tiles that a sample has."""
        tokens, supervised, tiles = self.sizes.max(0).tolist()
        return Size(tokens=tokens, supervised=supervised, tiles=tiles)

    @property
    def samples_per_step(self) -> float:
        """About, where the stage packs."""
        pack, mean = self.stage.pack, self.mean
        if pack is None:
            return self.stage.batch_size
        each = len(self.numbers) / len(self.micro_batches.ends)
        if self.full:
            each = max(1.0, min(pack.tokens / mean.tokens, pack.tiles / max(mean.tiles, 1e-9)))
        return self.stage.batch_size * each

    @cached_property
    def micro_batches(self) -> MicroBatches:
        """DataError: no sample can be used."""
        if self.full:
            sizes = [example_size(example) for example in self.full]
            costs = np.array([[sum(size.tokens for size in sizes), sum(size.supervised for size in sizes),
                               sum(size.tiles for size in sizes)]])  # fmt: skip
            return MicroBatches(members=np.zeros(1, np.int64), ends=np.ones(1, np.int64), costs=costs)
        return self._padded() if self.stage.pack is None else self._packs(self.stage.pack)

    def batch(self, number: int) -> Batch:
        """A micro batch as the model reads it; ValueError where none of its samples can be used."""
        if self.full:
            return packed_batch(self.full)
        found = [self.dataset[place] for place in self.micro_batches[number].tolist()]
        examples = [example for example in found if isinstance(example, Example)]
        if not examples:
            reasons = [str(one) for one in found if isinstance(one, Unusable)]
            raise ValueError(f"stage {self.stage.name}: its largest samples cannot be used: {reasons[0]}")
        return micro_batches(examples, len(examples))[0] if self.stage.pack is None else packed_batch(examples)

    def _sizes(self, numbers: np.ndarray) -> np.ndarray:
        found = np.zeros((len(numbers), 3), np.int64)
        for place, source in enumerate(self.dataset.sources):
            own = self.dataset.source_ids[numbers] == place
            found[own] = np.stack(source.sizes_at(self.dataset.indices[numbers[own]]), 1)
        return found

    def _packs(self, pack: PackRecipe) -> MicroBatches:
        """The first packs, and one of the sample of most tiles where that is more than a pack has."""
        plan = make_plan(self.dataset)
        members, ends = plan.members, plan.ends
        packs = self.stage.steps * self.stage.batch_size
        last = min(looked_at(self.dataset.sources), max(len(self.dataset), packs * len(members) // len(ends)))
        self.dataset.extend(last)
        tiles = self._sizes(np.arange(last))[:, 2]
        if tiles.max() > pack.tiles:
            members, ends = np.append(members, tiles.argmax()), np.append(ends, len(members) + 1)
        starts = np.concatenate([[0], ends[:-1]])
        return MicroBatches(members=members, ends=ends, costs=np.add.reduceat(self._sizes(members), starts))

    def _padded(self) -> MicroBatches:
        """As ``layout`` and ``batches.micro_batches`` make them: a process's share of a step, sorted by length."""
        stage, members, counts = self.stage, list[np.ndarray](), list[np.ndarray]()
        steps = self.numbers.reshape(-1, stage.batch_size)
        sizes, costs = self.sizes.reshape(*steps.shape, 3), list[np.ndarray]()
        for process in range(min(self.processes, stage.batch_size)):
            own = slice(process, None, self.processes)
            order = np.argsort(sizes[:, own, 0], axis=1, kind="stable")
            numbers = np.take_along_axis(steps[:, own], order, 1)
            ordered = np.take_along_axis(sizes[:, own], order[:, :, None], 1)
            for start in range(0, numbers.shape[1], stage.micro_batch):
                rows, cost = (of[:, start : start + stage.micro_batch] for of in (numbers, ordered))
                padded = cost[:, :, 0].max(1) * rows.shape[1]
                members.append(rows.ravel())
                counts.append(np.full(len(rows), rows.shape[1]))
                costs.append(np.stack([padded, cost[:, :, 1].sum(1), cost[:, :, 2].sum(1)], 1))
        ends = np.cumsum(np.concatenate(counts))
        return MicroBatches(members=np.concatenate(members), ends=ends, costs=np.concatenate(costs))


def drawn(
    stage: StageRecipe, sources: Sequence[Source], process: Process, *, seed: int, told: str, processes: int = 1
) -> Workload:
    """Of the sources of ``stage.data``, with the seed that the stage trains with."""
    opened = dict(zip(stage.data, sources, strict=True))

    def draw(steps: int, batch_size: int) -> MixedDataset:
        asked = replace(stage, steps=steps, batch_size=batch_size)
        return MixedDataset(asked, process, seed=seed, opener=lambda source, _: opened[source])

    most = looked_at(sources)
    if stage.pack is None:
        dataset = draw(max(1, min(stage.steps, most // stage.batch_size)), stage.batch_size)
        return Workload(stage=stage, dataset=dataset, told=told, processes=processes)
    few = min(PACKED, most)
    tokens, tiles = draw(1, few).sizes(np.arange(few))
    packs = int(max(tokens.sum() / stage.pack.tokens, tiles.sum() / stage.pack.tiles))
    dataset = draw(max(1, min(stage.steps * stage.batch_size, packs)), 1)
    return Workload(stage=stage, dataset=dataset, told=told, processes=processes)


def looked_at(sources: Sequence[Source]) -> int:
    """Samples, at most."""
    return min(LOOKED_AT, PASSES * sum(source.count for source in sources))


def assumed(stage: StageRecipe, config: VLMConfig, image_token_id: int, *, processes: int = 1) -> Workload:
    """One image of the most tiles and a short text; a thumbnail comes with more than one tile."""
    tiles = stage.max_tiles + (stage.max_tiles > 1 and config.use_thumbnail)
    tiles = min(tiles, max(1, (stage.max_length - TEXT) // config.tokens_per_tile))
    size = Size(tokens=tiles * config.tokens_per_tile + TEXT, supervised=ANSWER, tiles=tiles)
    told = f"assumed: one image of {tiles} tiles and {TEXT} tokens of text, {ANSWER} of them supervised"
    work = made(stage, [made_example(size, config, image_token_id)], told=told, processes=processes)
    if stage.pack is None:
        return work
    parts = [made_example(part, config, image_token_id) for part in _full_pack(stage.pack, size, config)]
    return replace(work, full=parts, told=f"{told}, in full packs")


def made(stage: StageRecipe, examples: Sequence[Example], *, told: str, processes: int = 1) -> Workload:
    """Of examples that are there already, over and over."""
    sizes = np.array([(size.tokens, size.supervised, size.tiles) for size in map(example_size, examples)], np.int32)
    source = Source(
        read=lambda place: Sample(id=str(place % len(examples)), messages=()), count=LOOKED_AT, fingerprint="",
        sizes=Sizes([sizes], [LOOKED_AT]),
    )  # fmt: skip
    return drawn(
        stage, [source] * len(stage.data), lambda sample: examples[int(sample.id)], seed=0, told=told,
        processes=processes,
    )  # fmt: skip


def _full_pack(pack: PackRecipe, size: Size, config: VLMConfig) -> Iterator[Size]:
    """As many samples of a size as fit, and one that uses up what they leave of both budgets."""
    tokens, tiles = pack.tokens, pack.tiles
    while tokens >= size.tokens and tiles >= size.tiles:
        yield size
        tokens, tiles = tokens - size.tokens, tiles - size.tiles
    tiles = min(tiles, tokens // config.tokens_per_tile)
    if tokens:
        text = tokens - tiles * config.tokens_per_tile
        yield Size(tokens=tokens, supervised=text * ANSWER // TEXT, tiles=tiles)


def example_size(example: Example) -> Size:
    return Size(
        tokens=len(example.input_ids),
        supervised=int((example.labels[1:] != IGNORE).sum()),
        tiles=len(example.tiles),
    )


def made_example(size: Size, config: VLMConfig, image_token_id: int) -> Example:
    """An example of a size without content; its tiles take no memory."""
    ids, labels = torch.zeros(size.tokens, dtype=torch.int64), torch.full((size.tokens,), IGNORE)
    ids[: size.tiles * config.tokens_per_tile] = image_token_id
    labels[size.tokens - size.supervised :] = 0
    side = config.image_size
    tiles = torch.empty(size.tiles, side, side, 3, dtype=torch.uint8, device="meta")
    return Example(sample_id="made", input_ids=ids, labels=labels, tiles=tiles)
