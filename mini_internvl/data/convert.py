"""Rows of any file, or the samples of a domain, as JSON lines, Parquet or WebDataset shards.

Records are read and written a batch at a time, in constant memory; worker processes turn batches into bytes, and this
one writes them in order. So the bytes depend neither on the number of processes nor on a run that was ended: the next
one goes on behind the last whole batch (``draft``).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mini_internvl.data import DataError, Fault, Row, place_of
from mini_internvl.data.check import Check, trainable
from mini_internvl.data.containers import Container
from mini_internvl.data.draft import Draft, Piece, Shards, State, forget
from mini_internvl.data.files import open_container
from mini_internvl.data.parts import Part, find_parts, format_key
from mini_internvl.data.rows import to_sample
from mini_internvl.data.workers import ordered_map
from mini_internvl.data.writers import KINDS, JsonLinesWriter, Writer
from mini_internvl.inputs.messages import normalise
from mini_internvl.records import Sample

BATCH_ROWS, BATCH_BYTES = 1024, 8 << 20  # of a piece of work, at most; a row group of Parquet
INSIDE_ROWS = 64  # of one whose images go into the file: some pieces of it are in memory at a time
KEPT_FAULTS = 1000


class Batch(NamedTuple):
    """Records of one file that follow each other: their places, or what a domain yielded."""

    part: int
    first: int  # records before them, of all files
    records: Sequence[Any]

    def cut(self, every: int) -> Iterator[Batch]:
        """The same without one that goes over a multiple of ``every``; 0 cuts nothing."""
        start = 0
        while every and (self.first + start) // every < (self.first + len(self.records) - 1) // every:
            end = start + every - (self.first + start) % every
            yield Batch(self.part, self.first + start, self.records[start:end])
            start = end
        yield Batch(self.part, self.first + start, self.records[start:])


@dataclass(frozen=True, kw_only=True)
class FromFiles:
    """Batch of places in files -> its piece, in any process."""

    containers: Sequence[Container]
    parts: Sequence[Part]
    format: str
    writer: Writer

    def __call__(self, batch: Batch) -> Piece:
        part, container = self.parts[batch.part], self.containers[batch.part]
        read = functools.partial(
            to_sample,
            root=part.path.parent if part.root is None else part.root,
            format=self.format,
            source=part.name or part.path.stem,
            max_tiles=part.max_tiles,
        )
        samples, faults = list[tuple[int, Sample]](), list[Fault]()
        contents = container.contents(batch.records)
        for number, (place, content) in enumerate(zip(batch.records, contents, strict=True), batch.first):
            row = container.parse(content, place[2])
            sample = read(row) if isinstance(row, Row) else row
            if isinstance(sample, Fault):
                faults.append(sample)
            else:
                samples.append((number, sample))
        return _piece(self.writer, batch, samples, faults, _fault)


def _fault(number: int, sample: Sample, reason: str) -> Fault:
    file, place = place_of(sample.place)
    return Fault(file=Path(file), place=place, reason=reason)


@dataclass(frozen=True, kw_only=True)
class FromDomain:
    """Batch of what a domain yielded -> its piece, in any process.

    A sample that could not be trained on, for instance without its image, is a fault.
    """

    raw: Path
    split: str
    writer: Writer

    def __call__(self, batch: Batch) -> Piece:
        samples, faults = list[tuple[int, Sample]](), list[Fault]()
        for number, sample in enumerate(batch.records, batch.first):
            if isinstance(sample, Fault):
                faults.append(sample)
                continue
            try:
                trainable(normalise(sample.messages))
                samples.append((number, sample))
            except ValueError as error:
                faults.append(self._fault(number, sample, str(error)))
        return _piece(self.writer, batch, samples, faults, self._fault)

    def _fault(self, number: int, sample: Sample, reason: str) -> Fault:
        return Fault(file=self.raw, place=f"{self.split} {number + 1}", reason=reason)


def _piece(
    writer: Writer,
    batch: Batch,
    samples: list[tuple[int, Sample]],
    faults: list[Fault],
    fault: Callable[[int, Sample, str], Fault],
) -> Piece:
    """All samples at once; where an image cannot be read, without its sample, whose fault is added."""
    try:
        data = writer.encode(samples) if samples else b""
    except (ValueError, OSError) as first:
        _need_room(first)
        whole = []
        for number, sample in samples:
            try:
                writer.encode([(number, sample)])
                whole.append((number, sample))
            except (ValueError, OSError) as error:
                _need_room(error)
                faults.append(fault(number, sample, str(error)))
        samples, data = whole, writer.encode(whole) if whole else b""
    return Piece(data, len(samples), len(batch.records), faults)


def _need_room(error: Exception) -> None:
    """Raise an error that is the disk's, not a record's."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise error


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How records are written; none of it but ``shards`` changes the bytes."""

    shards: Shards = field(default_factory=Shards)
    skip: bool = False  # leave out records that cannot be used; else the first batch with one raises DataError
    kept: int = KEPT_FAULTS  # faults that are kept; the others are counted
    replace: bool = False  # whether files of an earlier run give way
    workers: int = 0
    on_progress: Callable[[int], None] = lambda records: None  # gets the records that were read
    on_note: Callable[[str], None] = lambda line: None  # gets a line where something was begun before


def write(
    batches: Iterable[Batch],
    work: Callable[[Batch], Piece],
    writer: Writer,
    key: dict[str, str],
    settings: Settings,
) -> State:
    """Write all batches, or go on with them where an earlier call with the same ``key`` was ended.

    The journal stays, so that a later call knows that the file is finished; ``draft.forget`` deletes it. Whatever ends
    the work leaves all whole batches for the next call, as a kill does.
    """
    shards = settings.shards
    key = {**key, "shards": f"{shards.rows} {shards.size}", "code": _code()}
    with Draft(writer, key, shards, kept=settings.kept, replace=settings.replace) as draft:
        if draft.note:
            settings.on_note(draft.note)
        if draft.state.faulty and not settings.skip:  # of a call that did skip
            raise _unusable(draft.state.faults, draft.state.faulty)
        if draft.state.complete:
            return draft.state
        cut = itertools.chain.from_iterable(batch.cut(shards.rows) for batch in batches)
        for piece in ordered_map(work, itertools.islice(cut, draft.state.pieces, None), settings.workers):
            if piece.faults and not settings.skip:
                raise _unusable(piece.faults, len(piece.faults))
            draft.add(piece)
            settings.on_progress(draft.state.read)
        draft.complete()
    return draft.state


def _unusable(faults: Sequence[Fault], count: int) -> DataError:
    return DataError.of(faults, "mend the rows (minivl data check), or leave them out with --skip", count=count)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    inside: bool | None = None,
    format: str = "",
    settings: Settings | None = None,
) -> State:
    """Write the rows of a source, each once, to a file whose ending tells its kind, or to shards of that kind.

    Args:
        source: a file or folder of rows, or a meta JSON, as in training.
        inside: whether images go into the file; ``None``: in Parquet and shards, not in JSON lines.

    Raises:
        DataError: the source or a row cannot be used, or ``out`` is there already.
    """
    settings = settings or Settings()
    writer = writer_of(Path(out), inside)
    parts = list(find_parts(Path(source), Check()))
    containers = [open_container(part.path) for part in parts]
    work = FromFiles(containers=containers, parts=parts, format=format, writer=writer)
    key = {"source": _told(parts), "format": format_key(format), "images": str(writer.inside)}
    state = write(_batches(containers, batch_rows(writer)), work, writer, key, settings)
    return finished(state, writer.out, source)


def finished(state: State, out: Path, source: object) -> State:
    """Delete what was kept to go on; DataError where no row was written."""
    forget(out)
    if not state.rows:
        if state.faults:
            raise DataError.of(state.faults, "no row is left; mend them (minivl data check)", count=state.faulty)
        raise DataError(f"{source} holds no samples; is it the right file or folder?")
    return state


def writer_of(out: Path, inside: bool | None) -> Writer:
    """The writer of a file by its ending; DataError where none is known."""
    kind = KINDS.get(out.suffix.lower())
    if kind is None:
        raise DataError(f"{out}: the kind of file is told by its ending; known: {', '.join(KINDS)}")
    return kind(out=out, inside=kind is not JsonLinesWriter if inside is None else inside)


def batch_rows(writer: Writer) -> int:
    """Records of a piece."""
    return INSIDE_ROWS if writer.inside else BATCH_ROWS


def _batches(containers: Sequence[Container], rows: int) -> Iterator[Batch]:
    first = 0
    for number, container in enumerate(containers):
        for places in container.batches(rows, BATCH_BYTES):
            yield Batch(number, first, places)
            first += len(places)


def _told(parts: Sequence[Part]) -> str:
    """What decides the rows of files: it differs when a file was changed."""
    facts = []
    for part in parts:
        stat = part.path.stat()
        facts.append([os.fspath(part.path.resolve()), stat.st_size, stat.st_mtime_ns, *map(str, part[1:4])])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@functools.cache
def _code() -> str:
    """Hash of the code that reads and writes rows."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
