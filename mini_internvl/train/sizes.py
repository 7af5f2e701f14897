"""Sizes of a source's samples, in the short time that a plan may take.

A source that is indexed, or soon can be, tells those of all its samples, and its index is the one that training then
finds. Of one that would take longer the first samples are measured and stand for all, and of a drawn one some.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mini_internvl.data import Fault
from mini_internvl.data.sources import Sizes, Source, open_source
from mini_internvl.recipes import SourceRecipe
from mini_internvl.records import Sample, Size
from mini_internvl.train.processor import SampleProcessor

SECONDS = 20.0  # that a plan spends on reading sources that are not indexed
LEAST, MOST = 64, 1024  # samples that are measured at least, and kept at most, of a source that takes longer
FEW = 4  # samples of each number of tiles that are measured again with lower limits


class OutOfTimeError(Exception):
    """A source is too large to be read in the time that was given."""


class Measuring:
    """Measures samples until its time is over, and keeps the first of them."""

    def __init__(self, measure: Callable[[Sample], Size], seconds: float) -> None:
        self.measure, self.until = measure, time.monotonic() + seconds
        self.samples: list[Sample] = []
        self.sizes: list[tuple[int, int, int]] = []

    def __call__(self, sample: Sample) -> Size:
        if len(self.samples) >= LEAST and time.monotonic() > self.until:
            raise OutOfTimeError
        size = self.measure(sample)
        if len(self.samples) < MOST:
            self.samples.append(sample)
            self.sizes.append((size.tokens, size.supervised, size.tiles))
        return size

    def source(self) -> Source:
        """The samples that were kept."""
        sizes = np.array(self.sizes, np.int32).reshape(-1, 3)
        return Source(
            read=self.samples.__getitem__, count=len(sizes), fingerprint="", sizes=Sizes([sizes], [len(sizes)])
        )


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A source whose samples have sizes, and which of them those are."""

    source: Source
    name: str
    told: str  # which samples, for people
    whole: bool = True  # whether those are all of its samples


def tell(found: Sequence[Sized]) -> str:
    """Which samples the sizes are of, for people; sources of which the same is told stand together."""
    names: dict[str, list[str]] = {}
    for one in found:
        names.setdefault(one.told, []).append(one.name)
    return "; ".join(f"{told} {'each ' * (len(of) > 1)}of {', '.join(dict.fromkeys(of))}" for told, of in names.items())


class SizeReader:
    """Opens sources, each once, in ``seconds`` all together; drawn ones that differ in their seed alone are one."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.left = seconds
        self.opened: dict[tuple[SourceRecipe, str], Sized] = {}

    def __call__(self, recipe: SourceRecipe, process: SampleProcessor, share: float = 1.0) -> Sized:
        """In so much of the time that is left. DataError: it is not there, holds no samples, or none can be used."""
        key = _key(recipe), process.fingerprint
        if key not in self.opened:
            began = time.monotonic()
            self.opened[key] = self._open(recipe, process, self.left * share)
            self.left = max(0.0, self.left - (time.monotonic() - began))
        return self.opened[key]

    def lowered(self, recipe: SourceRecipe, process: SampleProcessor, measured: SampleProcessor) -> Sized:
        """As ``process`` would measure it, whose limits are not above those of ``measured``."""
        key = _key(recipe), process.fingerprint
        if key not in self.opened:
            known = self(recipe, measured)
            self.opened[key] = replace(known, source=lowered(known.source, process))
        return self.opened[key]

    def _open(self, recipe: SourceRecipe, process: SampleProcessor, seconds: float) -> Sized:
        measuring = Measuring(process.measure, seconds)
        name = recipe.name or recipe.path
        try:
            found = open_source(recipe, measuring, key=process.fingerprint, strict=False)
        except OutOfTimeError:
            found = measuring.source()
            told = f"estimated, for indexing takes longer, from the first {found.count:,} samples"
            return Sized(source=found, name=name, told=told, whole=False)
        if not found.count:
            for number in range(LEAST):
                sample = found.read(number)
                assert isinstance(sample, Sample), "what is drawn can be used"
                measuring(sample)
            return Sized(source=measuring.source(), name=name, told=f"of {LEAST} drawn samples", whole=False)
        if len(found.faults) >= found.count:
            found.refuse()  # no row is left
        return Sized(source=found, name=name, told=f"of all {found.count:,} samples")


def _key(recipe: SourceRecipe) -> SourceRecipe:
    """What of a source decides the sizes of its samples, but for chance."""
    return replace(recipe, weight=1.0, seed=0)


def lowered(source: Source, process: SampleProcessor) -> Source:
    """A source with its sizes as a processor with lower limits would give them.

    Tiles are told from a few samples of each number of them, of which the largest counts; tokens follow from tiles.
    """
    assert source.sizes is not None
    tokens, supervised, tiles = (column.astype(np.int64) for column in source.sizes.columns)
    fewer = tiles.copy()
    for count in np.unique(tiles[tokens > 0]).tolist():
        own = np.flatnonzero((tiles == count) & (tokens > 0))
        few = own[np.linspace(0, len(own) - 1, min(len(own), FEW)).astype(np.int64)]
        found = [_tiles(source.read(place), process) for place in few.tolist()]
        fewer[own] = max((most for most in found if most is not None), default=count)
    tokens = np.minimum(tokens - (tiles - fewer) * process.processor.config.tokens_per_tile, process.max_length)
    sizes = np.stack([tokens, np.minimum(supervised, tokens), fewer], 1).astype(np.int32)
    return replace(source, sizes=Sizes([sizes], [len(sizes)]))


def _tiles(sample: Sample | Fault, process: SampleProcessor) -> int | None:
    """``None`` of a sample that cannot be used."""
    try:
        return None if isinstance(sample, Fault) else process.measure(sample).tiles
    except ValueError:
        return None
