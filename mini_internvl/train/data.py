"""From sources of samples to the micro batches of each optimiser step.

Which source a sample comes from, and which of its samples it is, is a function of its number alone. So a run resumes
anywhere without replaying, and workers share nothing. Workers prepare one sample at a time; a step's samples are sorted
by length and cut into micro batches where they are used.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mini_internvl.data import DataError
from mini_internvl.data.sources import Source, open_source
from mini_internvl.inputs.messages import normalise
from mini_internvl.recipes import Recipe, SourceRecipe, StageRecipe
from mini_internvl.records import Batch, Example, Sample
from mini_internvl.train.independent import PADDING, position_ids, split_questions
from mini_internvl.train.losses.answers import IGNORE


def open_checked(source: SourceRecipe) -> Source:
    """A source whose samples can all be trained on: their independent questions can be packed."""

    def check(sample: Sample) -> None:
        if sample.independent:
            split_questions(normalise(sample.messages))

    return open_source(source, check)


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad on the right to the longest; tiles and extras are joined in row order."""
    pad = functools.partial(pad_sequence, batch_first=True)
    ids = [example.input_ids for example in examples]
    segments = [torch.zeros_like(e.input_ids) if e.segment_ids is None else e.segment_ids for e in examples]
    documents = [torch.zeros_like(e.input_ids) if e.document_ids is None else e.document_ids for e in examples]
    positions = [position_ids(row, e.document_ids) for row, e in zip(segments, examples, strict=True)]
    packed = any(example.segment_ids is not None for example in examples)
    divided = any(example.document_ids is not None for example in examples)
    return Batch(
        sample_ids=tuple(example.sample_id for example in examples),
        input_ids=pad(ids, padding_value=pad_id),
        labels=pad([example.labels for example in examples], padding_value=IGNORE),
        attention_mask=pad([torch.ones_like(row) for row in ids]),
        position_ids=pad(positions),
        segment_ids=pad(segments, padding_value=PADDING) if packed else None,
        document_ids=pad(documents, padding_value=PADDING) if divided else None,
        tiles=torch.cat([example.tiles for example in examples]),
        extras={name: torch.cat([example.extras[name] for example in examples]) for name in examples[0].extras},
    )


def micro_batches(examples: Sequence[Example], size: int, pad_id: int = 0) -> list[Batch]:
    """Batches of ``size`` rows, similar lengths together so that little is padded."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    return [collate(ordered[i : i + size], pad_id) for i in range(0, len(ordered), size)]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is, but for what losses read on the CPU (see ``losses.answers``)."""
    if device.type == "cpu":
        return batch

    def move(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    extras = {name: move(tensor) for name, tensor in batch.extras.items()}
    names = ("input_ids", "attention_mask", "position_ids", "tiles")
    moved: dict[str, Any] = {name: move(getattr(batch, name)) for name in names}
    return replace(batch, extras=extras, **moved)


class MixedDataset(Dataset["Example | DataError"]):
    """The samples of a stage, numbered over all its steps; one that cannot be used is a DataError in its place, not
    raised in the worker, so that it arrives in order and in plain words."""

    def __init__(
        self,
        stage: StageRecipe,
        process: Callable[[Sample], Example],
        *,
        seed: int,
        opener: Callable[[SourceRecipe], Source] = open_checked,
    ) -> None:
        self.stage, self.process = stage, process
        self.sources = [opener(source).with_seed(seed + i) for i, source in enumerate(stage.data)]
        weights = np.array([source.weight for source in stage.data])
        count = stage.steps * stage.batch_size
        source_ids = np.random.default_rng(seed).choice(len(weights), size=count, p=weights / weights.sum())
        self.source_ids = source_ids.astype(np.int16)
        # indices[n]: how many earlier samples came from the same source
        self.indices = np.zeros(count, dtype=np.int64)
        for source in range(len(weights)):
            own = self.source_ids == source
            self.indices[own] = np.arange(own.sum())

    def __len__(self) -> int:
        return len(self.source_ids)

    def sample(self, number: int) -> Sample:
        return self.sources[self.source_ids[number]][int(self.indices[number])]

    def __getitem__(self, number: int) -> Example | DataError:
        try:
            return self.process(self.sample(number))
        except DataError as error:
            return DataError(str(error))


def step_batches(dataset: MixedDataset, start: int, workers: int = 1) -> Iterator[list[Batch]]:
    """The micro batches of each step from ``start`` on, their samples prepared ahead in worker processes.

    A sample that cannot be used is raised as DataError when its step is reached.
    """
    size = dataset.stage.batch_size
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start * size, len(dataset)),
        num_workers=workers,
        prefetch_factor=-(-2 * size // workers) if workers else None,
        collate_fn=_pack,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else it takes a number from torch's, and a resumed run differs
    )
    if workers:
        atexit.unregister(_kill_workers)
        atexit.register(_kill_workers)  # the last registered is called first
    items = iter(loader)
    for _ in range(start, dataset.stage.steps):
        examples = []
        for _ in range(size):
            item = next(items)
            item = pickle.loads(item) if isinstance(item, bytes) else item
            if isinstance(item, DataError):
                raise item
            examples.append(item)
        yield micro_batches(examples, dataset.stage.micro_batch)


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

    A small set is kept in memory; of a larger one only the order is, and its samples are prepared anew each time.
    """

    ROWS, KEPT_BYTES = 16, 256_000_000

    def __init__(self, read: Callable[[int], Example], count: int) -> None:
        self.read, lengths, total = read, [], 0
        self.kept: dict[int, Example] = {}
        for number in range(count):
            example = read(number)
            lengths.append(len(example.input_ids))
            total += example.tiles.nbytes
            if total < self.KEPT_BYTES:
                self.kept[number] = example
        self.order = sorted(range(count), key=lengths.__getitem__)

    def __iter__(self) -> Iterator[Batch]:
        for i in range(0, len(self.order), self.ROWS):
            numbers = self.order[i : i + self.ROWS]
            yield collate([self.kept.get(number) or self.read(number) for number in numbers], 0)


def held_out_set(
    sources: Iterable[SourceRecipe],
    process: Callable[[Sample], Example],
    recipe: Recipe,
    opener: Callable[[SourceRecipe], Source] = open_checked,
) -> HeldOut | None:
    """The same number of samples from each source; ``None`` without sources."""
    opened = [opener(source).with_seed(recipe.seed) for source in sources]
    if not opened:
        return None
    each = -(-recipe.held_out_samples // len(opened))
    return HeldOut(lambda number: process(opened[number // each][number % each]), each * len(opened))
