"""From sources of samples to the micro batches of each optimiser step.

Which source a sample comes from, and which of its samples it is, is a function of its number alone; which numbers make
up a step is settled by the layout. So a run resumes anywhere without replaying, and workers share nothing. Workers
prepare one sample at a time, which are put together where they are used.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mini_internvl.data import DataError, Fault, place_of
from mini_internvl.data.index import Progress
from mini_internvl.data.pictures import each_picture
from mini_internvl.data.sources import Source, open_source
from mini_internvl.inputs.messages import normalise
from mini_internvl.inputs.questions import split_questions
from mini_internvl.ranks import ALONE, Ranks
from mini_internvl.recipes import Recipe, SourceRecipe, StageRecipe
from mini_internvl.records import Batch, Example, Sample
from mini_internvl.train.batches import collate
from mini_internvl.train.layout import Layout
from mini_internvl.train.pictures import PictureProcessor
from mini_internvl.train.processor import SampleProcessor

Process = Callable[[Sample], Example]  # one that measures samples too, or any function


class Opener:
    """Opens sources, each once, their rows checked and measured as the processor of a stage reads them.

    ``workers`` processes look at the rows of a file; ``strict`` refuses rows that cannot be used.
    """

    def __init__(self, *, workers: int = 0, on_progress: Progress | None = None, strict: bool = True) -> None:
        self.workers, self.on_progress, self.strict = workers, on_progress, strict
        self.opened: dict[tuple[SourceRecipe, str], Source] = {}

    def __call__(self, source: SourceRecipe, process: Process) -> Source:
        """DataError as in :func:`open_source`."""
        measures = process if isinstance(process, SampleProcessor | PictureProcessor) else None
        key = measures.fingerprint if measures else ""
        if (source, key) not in self.opened:
            measure = measures.measure if measures else _can_be_packed
            found = open_source(
                source, measure, key=key, workers=self.workers, on_progress=self.on_progress, strict=self.strict
            )
            if found.count and len(found.faults) >= found.count:
                found.refuse()  # no row is left
            alone = isinstance(process, PictureProcessor) and source.kind != "pictures"
            self.opened[source, key] = each_picture(found) if alone else found
        return self.opened[source, key]


def _can_be_packed(sample: Sample) -> None:
    """ValueError where independent questions cannot be trained on together."""
    if sample.independent:
        split_questions(normalise(sample.messages))


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """A sample that cannot be trained on, where it stands, and why."""

    number: int  # of the sample in its stage
    file: str
    place: str  # "line 12" or "row 3" of the file; the sample's name where it was made
    reason: str

    def __str__(self) -> str:
        kind, _, line = self.place.partition(" ")
        return f"{self.file}:{line}: {self.reason}" if kind == "line" else f"{self.file}: {self.place}: {self.reason}"


class MixedDataset(Dataset["Example | Unusable"]):
    """The samples of a stage by number; one that cannot be used has its reason in its place, and no other moves."""

    def __init__(
        self,
        stage: StageRecipe,
        process: Process,
        *,
        seed: int,
        opener: Callable[[SourceRecipe, Process], Source] | None = None,
    ) -> None:
        self.stage, self.process, self.seed = stage, process, seed
        opener = opener or Opener()
        self.sources = [opener(source, process).with_seed(seed + i) for i, source in enumerate(stage.data)]
        self.source_ids = np.empty(0, dtype=np.int16)
        self.indices = np.empty(0, dtype=np.int64)  # of each number, how many before it came from the same source
        self._draws = np.random.default_rng(seed)
        self._drawn = np.zeros(len(stage.data), dtype=np.int64)  # numbers of each source
        self.extend(stage.steps * stage.batch_size)

    def extend(self, count: int) -> None:
        """Settle which sample each of the first ``count`` numbers means; those that are settled stay as they are."""
        more = max(0, count - len(self.source_ids))
        weights = np.array([source.weight for source in self.stage.data])
        chosen = self._draws.choice(len(weights), size=more, p=weights / weights.sum()).astype(np.int16)
        indices = np.zeros(more, dtype=np.int64)
        for source in range(len(weights)):
            own = chosen == source
            indices[own] = self._drawn[source] + np.arange(own.sum())
            self._drawn[source] += own.sum()
        self.source_ids = np.concatenate([self.source_ids, chosen])
        self.indices = np.concatenate([self.indices, indices])

    def __len__(self) -> int:
        return len(self.source_ids)

    def sizes(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and tiles of samples; 0 tokens of one that cannot be used."""
        tokens, tiles = np.zeros(len(numbers), dtype=np.int64), np.zeros(len(numbers), dtype=np.int64)
        for place, source in enumerate(self.sources):
            own = self.source_ids[numbers] == place
            tokens[own], _, tiles[own] = source.sizes_at(self.indices[numbers[own]])
        return tokens, tiles

    def sample(self, number: int) -> Sample | Fault:
        return self.sources[self.source_ids[number]][int(self.indices[number])]

    def label(self, number: int) -> str:
        """Names a sample without reading it."""
        source = self.stage.data[self.source_ids[number]]
        return f"number {self.indices[number]} of {source.name or source.path}"

    def __getitem__(self, number: int) -> Example | Unusable:
        sample = self.sample(number)
        if isinstance(sample, Fault):
            return Unusable(number=number, file=str(sample.file), place=sample.place, reason=sample.reason)
        try:
            example = self.process(sample)
            if self.stage.pack:
                self._check_size(number, len(example.input_ids))
            return example
        except DataError as error:
            file, place = place_of(sample.place) if sample.place else (sample.source, f"sample {sample.id}")
            return Unusable(number=number, file=file, place=place, reason=str(error))

    def _check_size(self, number: int, tokens: int) -> None:
        """DataError where a pack was planned with another size, which an image had when its row was indexed."""
        source = self.sources[self.source_ids[number]]
        if source.sizes is None:  # of samples that are drawn
            return
        [[planned], _, _] = source.sizes_at(self.indices[number : number + 1])
        if tokens != planned:
            raise DataError(
                f"an image was changed after its row was indexed: the sample has {tokens} tokens, and its pack was "
                f"planned with {planned}; put the image back, or begin a new run"
            )


@dataclass(frozen=True, kw_only=True)
class StepData:
    """What one process does in one step."""

    batches: Sequence[Batch]  # its micro batches, as many in every process
    first: int  # number of the first of them among those of all processes
    unusable: Sequence[Unusable]
    waited: float  # seconds until its samples were there

    @property
    def names(self) -> str:
        """Of all its samples."""
        return ", ".join(name for batch in self.batches for name in batch.sample_ids)


def step_batches(
    dataset: MixedDataset,
    start: int,
    workers: int = 1,
    *,
    layout: Layout | None = None,
    ranks: Ranks = ALONE,
    on_wait: Callable[[int], None] = lambda number: None,
) -> Iterator[StepData]:
    """Each step from ``start`` on, its samples prepared ahead in worker processes.

    ``on_wait`` is told the number of the sample that is waited for.
    """
    layout = layout or Layout(dataset)
    steps = range(start, dataset.stage.steps)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=_Numbers(layout, steps, ranks),
        num_workers=workers,
        prefetch_factor=-(-2 * layout.samples_per_step // (workers * ranks.size)) if workers else None,
        collate_fn=_pack,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else it takes a number from torch's, and a resumed run differs
    )
    if workers:
        atexit.unregister(_kill_workers)
        atexit.register(_kill_workers)  # the last registered is called first
    items = iter(loader)
    for step in steps:
        began, unusable = time.monotonic(), list[Unusable]()
        groups: list[list[Example]] = []
        for numbers in layout.groups(step, ranks):
            groups.append([])
            for number in numbers.tolist():
                on_wait(number)
                item = next(items)
                item = pickle.loads(item) if isinstance(item, bytes) else item
                unusable.append(item) if isinstance(item, Unusable) else groups[-1].append(item)
        batches = layout.batches(groups, ranks)
        waited = time.monotonic() - began
        yield StepData(batches=batches, first=ranks.rank * len(batches), unusable=unusable, waited=waited)


class _Numbers:
    """The numbers of the samples that a process needs, in order."""

    def __init__(self, layout: Layout, steps: range, ranks: Ranks) -> None:
        self.layout, self.steps, self.ranks = layout, steps, ranks

    def __iter__(self) -> Iterator[int]:
        for step in self.steps:
            for numbers in self.layout.groups(step, self.ranks):
                yield from numbers.tolist()


def _pack(item: Any) -> Any:
    """In a worker, bytes: tensors would each hold a file open until their step comes."""
    return pickle.dumps(item) if get_worker_info() else item


def _begin_worker(number: int) -> None:
    """Leave stopping to the run, whether a signal reaches its group or every process, and end with the run.

    torch's own watch ends a worker whose parent was killed only when what it has queued has been read.
    """
    if os.name != "nt":
        os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _kill_workers() -> None:
    """End the workers of an iterator that is still referred to when the process ends, for instance by a traceback.

    multiprocessing would send them SIGTERM, which they ignore, and wait for ever.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class HeldOut:
    """A fixed set of held-out samples in batches of similar length, iterated for every measurement.

    A small set is kept in memory; of a larger one only the order is, and its samples are prepared anew each time. What
    cannot be used is left out: ``unusable``.
    """

    ROWS, KEPT_BYTES = 16, 256_000_000

    def __init__(self, read: Callable[[int], Example | Unusable], count: int) -> None:
        self.read, lengths, total = read, dict[int, int](), 0
        self.kept: dict[int, Example] = {}
        self.unusable: list[Unusable] = []
        for number in range(count):
            example = read(number)
            if isinstance(example, Unusable):
                self.unusable.append(example)
                continue
            lengths[number] = len(example.input_ids)
            total += example.tiles.nbytes
            if total < self.KEPT_BYTES:
                self.kept[number] = example
        self.order = sorted(lengths, key=lengths.__getitem__)

    def __iter__(self) -> Iterator[Batch]:
        for i in range(0, len(self.order), self.ROWS):
            read = [self.kept.get(number) or self.read(number) for number in self.order[i : i + self.ROWS]]
            yield collate([example for example in read if isinstance(example, Example)], 0)


def held_out_set(
    sources: Sequence[SourceRecipe],
    process: Process,
    recipe: Recipe,
    opener: Opener | None = None,
) -> HeldOut | None:
    """The same number of samples from each source; ``None`` without sources."""
    if not sources:
        return None
    dataset = _held_out(sources, process, recipe, opener, -(-recipe.held_out_samples // len(sources)))
    return HeldOut(dataset.__getitem__, len(dataset))


def shown_samples(
    sources: Sequence[SourceRecipe], process: Process, recipe: Recipe, opener: Opener | None = None
) -> list[Sample]:
    """``recipe.shown_samples`` of the held-out samples that can be used, of each source in turn."""
    if not sources or not recipe.shown_samples:
        return []
    each = min(-(-recipe.held_out_samples // len(sources)), recipe.shown_samples)
    dataset = _held_out(sources, process, recipe, opener, each)
    order = np.arange(len(dataset)).reshape(len(sources), each).T.flatten()
    usable = (number for number in order.tolist() if isinstance(dataset[number], Example))
    samples = (dataset.sample(number) for number in usable)
    return list(islice((sample for sample in samples if isinstance(sample, Sample)), recipe.shown_samples))


def _held_out(
    sources: Sequence[SourceRecipe], process: Process, recipe: Recipe, opener: Opener | None, each: int
) -> MixedDataset:
    """The first ``each`` samples of each source, one source after the other."""
    stage = StageRecipe(name="held out", data=tuple(sources), steps=1, batch_size=each * len(sources))
    dataset = MixedDataset(stage, process, seed=recipe.seed, opener=opener)
    dataset.sources = [source.with_seed(recipe.seed) for source in dataset.sources]
    dataset.source_ids = np.repeat(np.arange(len(sources)), each)
    dataset.indices = np.tile(np.arange(each), len(sources))
    return dataset
