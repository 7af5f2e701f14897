"""What a pass over a source's samples finds: their sizes, faults, and what is odd but can be trained on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mini_internvl.data import Fault, Row, formats
from mini_internvl.data.oddities import oddities
from mini_internvl.inputs import chat
from mini_internvl.inputs.messages import Turn, normalise
from mini_internvl.records import Sample, Size

KEPT_FAULTS = 1000  # more are counted
Measure = Callable[[Sample], Size | None]
"""A sample's size, or a further check of it that gives ``None``; it raises ValueError for one that cannot be used."""
UNKNOWN = Size(tokens=0, supervised=0, tiles=0)


class Check:
    """Collects what is wrong or odd in samples; ``measure`` gives their sizes."""

    def __init__(self, measure: Measure | None = None) -> None:
        self.measure = measure
        self.samples = self.faulty = self.shortened = 0
        self.measured = False  # whether a size was given
        self.faults: list[Fault] = []
        self.noted: dict[str, tuple[str, int]] = {}  # what is odd -> where first, how often

    def row(
        self, row: Row | Fault, read: Callable[[Row], Sample | Fault], format: str = "", at: str | None = None
    ) -> Size | Fault:
        """Check a row as ``read`` turns it into a sample, and its keys; ``at`` is what notes name instead of it."""
        if isinstance(row, Fault):
            return self.fault(row)
        sample = read(row)
        if isinstance(sample, Fault):
            return self.fault(sample)
        found = self.sample(sample, row.file, row.place, at)
        if isinstance(found, Size):
            for key in formats.unread(row.raw, format):
                self.note(f'the key "{key}" is not read', at or sample.place)
        return found

    def sample(self, sample: Sample, file: Path, place: str, at: str | None = None) -> Size | Fault:
        """Check a sample that stands at ``place`` of ``file``."""
        try:
            turns = normalise(sample.messages)
            size = self._size(sample, turns)
        except ValueError as error:
            reason = str(error).removeprefix(f"{sample.place}, ") if sample.place else str(error)
            return self.fault(Fault(file=file, place=place, reason=reason))
        self.samples += 1
        for one in oddities(turns):
            self.note(one.what, at or sample.place or f"{sample.source}/{sample.id}")
        if size is None:
            return UNKNOWN
        self.measured = True
        self.shortened += size.shortened
        return size

    def _size(self, sample: Sample, turns: tuple[Turn, ...]) -> Size | None:
        """The sample's size. To measure it is to render it, so turns are looked at here only where that was not done,
        and where it failed, to say why in fewer words."""
        _need_answer_and_images(turns)
        try:
            size = self.measure(replace(sample, messages=cast(Any, turns))) if self.measure else None
        except ValueError:
            chat.check(turns, template=chat.CHATML)
            raise
        if size is None:
            chat.check(turns, template=chat.CHATML)
        return size

    def fault(self, fault: Fault) -> Fault:
        """Keep a fault."""
        self.faulty += 1
        if len(self.faults) < KEPT_FAULTS:
            self.faults.append(fault)
        return fault

    def note(self, what: str, where: str) -> None:
        """Count something odd; only the first place is kept."""
        self.add(what, where, 1)

    def add(self, what: str, where: str, times: int) -> None:
        """Count something odd that was met so often, ``where`` first."""
        first, count = self.noted.get(what, (where, 0))
        self.noted[what] = (first, count + times)

    def warnings(self) -> list[str]:
        """One line for each odd thing, the first place and how many more, and one of samples that were shortened."""
        lines = [
            f"{first}{f' and {count - 1:,} more' if count > 1 else ''}: {what}"
            for what, (first, count) in self.noted.items()
        ]
        if self.shortened:
            lines.append(
                f"{self.shortened:,} samples were shortened to fit max_length (fewer tiles, or turns taken from their "
                "end); raise it to train on all of them"
            )
        return lines


def trainable(turns: Sequence[Turn]) -> None:
    """Check all that needs neither tokenizer nor decoding an image; ValueError names the turn or the image."""
    chat.check(turns, template=chat.CHATML)
    _need_answer_and_images(turns)


def _need_answer_and_images(turns: Sequence[Turn]) -> None:
    if all(turn.role != "assistant" for turn in turns):
        raise ValueError("there is no answer to learn; end the row with one")
    for source in (image.source for turn in turns for image in turn.images):
        if isinstance(source, str) and not source.startswith("data:"):
            _need_file(source)


@functools.lru_cache(maxsize=1 << 16)
def _need_file(path: str) -> None:
    """Raise ValueError where there is no file; that it was missing is not remembered, so that it can be put there."""
    if not os.path.isfile(path):
        raise ValueError(f"the image {path} is missing; check the path")
