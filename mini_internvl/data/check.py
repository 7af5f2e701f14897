"""What a pass over a source's samples finds: faults that stop a training, and what is odd but can be trained on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mini_internvl.data import DataError, Fault, Row, formats
from mini_internvl.inputs import boxes, chat
from mini_internvl.inputs.messages import Turn, normalise
from mini_internvl.records import Sample

KEPT_FAULTS = 1000  # more are counted
Extra = Callable[[Sample], None]  # a further check of a sample; it raises ValueError


class Check:
    """Collects what is wrong or odd in the samples of one source; ``extra`` checks every sample too."""

    def __init__(self, extra: Extra | None = None) -> None:
        self.extra = extra
        self.samples = self.faulty = 0
        self.faults: list[Fault] = []
        self._odd: dict[str, tuple[str, int]] = {}  # what -> where first, how often

    def row(self, row: Row | Fault, read: Callable[[Row], Sample | Fault], format: str = "") -> None:
        """Check a row as ``read`` turns it into a sample, and its keys."""
        if isinstance(row, Fault):
            return self.fault(row)
        sample = read(row)
        if isinstance(sample, Fault):
            return self.fault(sample)
        for key in formats.unread(row.raw, format):
            self.note(f'the key "{key}" is not read', sample.place)
        self.sample(sample, row.file, row.place)

    def sample(self, sample: Sample, file: Path, place: str) -> None:
        """Check a sample that stands at ``place`` of ``file``."""
        try:
            turns = normalise(sample.messages)
            trainable(turns)
            if self.extra is not None:
                self.extra(sample)
        except ValueError as error:
            return self.fault(Fault(file=file, place=place, reason=str(error)))
        self.samples += 1
        for what in odd(turns):
            self.note(what, sample.place or f"{sample.source}/{sample.id}")

    def fault(self, fault: Fault) -> None:
        """Keep a fault."""
        self.faulty += 1
        if len(self.faults) < KEPT_FAULTS:
            self.faults.append(fault)

    def note(self, what: str, where: str) -> None:
        """Count something odd; only the first place is kept."""
        first, count = self._odd.get(what, (where, 0))
        self._odd[what] = (first, count + 1)

    def warnings(self) -> list[str]:
        """One line for each odd thing: the first place and how many more."""
        return [
            f"{first}{f' and {count - 1:,} more' if count > 1 else ''}: {what}"
            for what, (first, count) in self._odd.items()
        ]

    def refuse(self) -> None:
        """Raise DataError with every fault listed, if there is one."""
        if self.faults:
            raise DataError.of(self.faults, "mend the rows or take them out", count=self.faulty)


def trainable(turns: Sequence[Turn]) -> None:
    """Check all that needs neither tokenizer nor decoding an image; ValueError names the turn or the image."""
    chat.render(turns, template=chat.CHATML)
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


def odd(turns: Sequence[Turn]) -> Iterator[str]:
    """What can be trained on and is still likely a mistake."""
    for turn in turns:
        said = turn.text
        if turn.role == "assistant":
            if not said.strip():
                yield "an answer holds only spaces"
            if "[" in said and any(value > 1000 for _, found in boxes.parse(said) for box in found for value in box):
                yield "a box has a coordinate above 1000; boxes are written in thousandths of the image's sides"
        elif turn.role == "user" and not said.strip():
            yield "a question holds no text"
    if turns[-1].role == "user":
        yield "the last question has no answer, so nothing is learnt from it"
