"""What rows hold, counted: turns, answers, images and where they come from; sizes stand in the index already."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mini_internvl.data import Fault
from mini_internvl.data.inspection import Range, ranges
from mini_internvl.data.sources import RowFiles
from mini_internvl.data.workers import ordered_map
from mini_internvl.inputs.messages import normalise

SHORT = 60  # characters: longer answers are counted by their length alone
KEPT_ANSWERS = 100_000  # different short answers that are counted, those first met
COLUMNS = ("turns", "images", "answer characters", "question characters")


@dataclass(kw_only=True)
class Counts:
    """Of some rows that can be trained on."""

    columns: np.ndarray  # (rows, 4) int32, see ``COLUMNS``; of a faulty row 0
    sources: collections.Counter[str] = field(default_factory=collections.Counter)
    sizes: dict[str, np.ndarray] = field(default_factory=dict)  # source -> (3,) tokens, supervised tokens and tiles
    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    longer: int = 0  # answers that are longer than ``SHORT``, or met after ``KEPT_ANSWERS`` others

    def add(self, other: Counts) -> None:
        """Add what other rows hold, but for their columns."""
        self.sources.update(other.sources)
        for name, size in other.sizes.items():
            self.sizes[name] = self.sizes.get(name, 0) + size
        for answer, times in other.answers.items():
            if answer in self.answers or len(self.answers) < KEPT_ANSWERS:
                self.answers[answer] += times
            else:
                self.longer += times
        self.longer += other.longer


def count_rows(
    rows: RowFiles, *, workers: int = 0, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Counts:
    """Read every row once. ``on_progress`` gets the rows that are done, and all."""
    parts, total = list(ranges(rows)), sum(map(len, rows.files))
    whole = Counts(columns=np.zeros((total, len(COLUMNS)), np.int32))
    done = 0
    for part, found in zip(parts, ordered_map(_Counter(rows), parts, workers), strict=True):
        whole.columns[done : done + len(found.columns)] = found.columns
        whole.add(found)
        done += part.end - part.start
        on_progress(done, total)
    return whole


@dataclass(frozen=True)
class _Counter:
    rows: RowFiles

    def __call__(self, part: Range) -> Counts:
        found = Counts(columns=np.zeros((part.end - part.start, len(COLUMNS)), np.int32))
        sizes = np.asarray(self.rows.files[part.file].sizes[part.start : part.end], np.int64)
        for number in range(part.start, part.end):
            sample = self.rows.sample(part.file, number)
            if isinstance(sample, Fault):
                continue
            turns = normalise(sample.messages)
            said = [turn.text for turn in turns if turn.role == "assistant"]
            found.columns[number - part.start] = (
                len(turns),
                sum(len(turn.images) for turn in turns),
                sum(map(len, said)),
                sum(len(turn.text) for turn in turns if turn.role == "user"),
            )
            found.sources[sample.source] += 1
            found.sizes[sample.source] = found.sizes.get(sample.source, 0) + sizes[number - part.start]
            for answer in said:
                if len(answer) <= SHORT:
                    found.answers[answer] += 1
                else:
                    found.longer += 1
        return found
