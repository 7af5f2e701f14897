"""Rows of any file as JSON lines, Parquet or a WebDataset shard, images by their paths or inside.

Rows are read and written a batch at a time, in constant memory; worker processes turn batches into bytes, and this one
writes them in order. So the bytes of a file depend neither on the number of processes nor on a run that was ended.
Parquet cannot hold values of free shape: ``targets`` and ``patch_annotations`` are JSON texts there.
"""

from __future__ import annotations

import abc
import base64
import functools
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.check import Check
from mini_internvl.data.containers import IMAGE_ENDINGS, Container
from mini_internvl.data.files import open_container
from mini_internvl.data.parts import Part, find_parts
from mini_internvl.data.rows import image_ending, stored, to_row, to_sample
from mini_internvl.data.workers import ordered_map
from mini_internvl.files import clear_drafts, new_file
from mini_internvl.inputs.images import open_source
from mini_internvl.records import Sample

BATCH_ROWS, BATCH_BYTES = 1024, 8 << 20  # of a piece of work, at most; a row group of Parquet
INSIDE_ROWS = 64  # of one whose images go into the file: some pieces of it are in memory at a time
KEPT_FAULTS = 1000
_encode = json.JSONEncoder(ensure_ascii=False).encode
BLOCK = 512  # bytes of a block of a tar file


class Batch(NamedTuple):
    """Rows of one file that follow each other."""

    part: int
    first: int  # rows before them, of all files
    places: list[tuple[int, int, int]]


class Piece(NamedTuple):
    """What a batch became."""

    data: bytes
    rows: int
    read: int  # rows that were read
    faults: list[Fault]


@dataclass(frozen=True, kw_only=True)
class Writer(abc.ABC):
    """One kind of file."""

    out: Path
    inside: bool  # whether images stand in the file; else their paths do

    @abc.abstractmethod
    def encode(self, samples: Sequence[tuple[int, Sample]]) -> bytes:
        """A part of the file with these numbered samples; ValueError where an image cannot be read."""

    def write(self, file: BinaryIO, pieces: Iterator[bytes]) -> None:
        """Write parts one after the other."""
        for piece in pieces:
            file.write(piece)

    def row(self, number: int, sample: Sample, inside: Callable[[Any], Any]) -> dict[str, Any]:
        """A sample's row; ``inside`` makes what the row holds of the bytes of an image."""
        sample = _plain(sample)
        if self.inside:
            return to_row(sample, stored=lambda image: inside(image_bytes(image)))
        numbers, (folder, name) = itertools.count(1), self.beside
        return to_row(sample, stored=lambda image: stored(image, folder, f"{name}/{number:06d}-{next(numbers)}"))

    @functools.cached_property
    def beside(self) -> tuple[Path, str]:
        """The folder of the file, and that of images that stand beside it, below the first."""
        return self.out.parent, f"images/{self.out.stem}"


def _plain(sample: Sample) -> Sample:
    """The sample with texts that are alone as texts, not as lists of one: Parquet knows lists only."""

    messages: list[Any] = list(sample.messages)
    for place, message in enumerate(messages):
        content = message["content"]
        if not isinstance(content, str) and len(content) == 1 and content[0].keys() == {"type", "text"}:
            messages[place] = {**message, "content": content[0]["text"]}
    return sample if messages == sample.messages else replace(sample, messages=messages)


class JsonLinesWriter(Writer):
    """InternVL's jsonl; images inside are data URLs."""

    def encode(self, samples: Sequence[tuple[int, Sample]]) -> bytes:
        rows = (self.row(number, sample, _data_url) for number, sample in samples)
        return "".join(_encode(row) + "\n" for row in rows).encode()


class ShardWriter(Writer):
    """A WebDataset tar: for each row ``NUMBER.json`` and its images, ``NUMBER.0.jpg``."""

    def encode(self, samples: Sequence[tuple[int, Sample]]) -> bytes:
        members = []
        for number, sample in samples:
            images: dict[str, bytes] = {}

            def inside(content: bytes, number: int = number, images: dict[str, bytes] = images) -> str:
                name = f"{number:09d}.{len(images)}.{_ending(content)}"
                images[name] = content
                return name

            row = self.row(number, sample, inside)
            text = _encode(row).encode()
            members += [_member(f"{number:09d}.json", text), *(_member(*image) for image in images.items())]
        return b"".join(members)

    def write(self, file: BinaryIO, pieces: Iterator[bytes]) -> None:
        super().write(file, pieces)
        file.write(bytes(2 * BLOCK))


def _member(name: str, content: bytes) -> bytes:
    """A file of a tar; ``TarInfo.tobuf`` gives the same header, at a third of the speed of all the rest."""
    head, base = _header()
    named, size = name.encode(), b"%011o" % len(content)
    head = named + head[len(named) : 124] + size + head[135:]
    total = b"%06o\0 " % (base + sum(named) + sum(size))
    return head[:148] + total + head[156:] + content + bytes(-len(content) % BLOCK)


@functools.cache
def _header() -> tuple[bytes, int]:
    """The header of a file without name and size, and the sum of its bytes, those of the sum as spaces."""
    head = tarfile.TarInfo("").tobuf(tarfile.GNU_FORMAT)
    head = head[:124] + bytes(11) + head[135:148] + b" " * 8 + head[156:]
    return head, sum(head)


class ParquetWriter(Writer):
    """Parquet with the keys of InternVL's and OpenAI's rows; images inside are bytes."""

    def schema(self) -> Any:
        import pyarrow as pa

        image = pa.binary() if self.inside else pa.string()
        texts = [("type", pa.string()), ("text", pa.string()), ("image", image), ("name", pa.string())]
        part = pa.struct([*texts, ("scale", pa.int64()), ("max_tiles", pa.int64())])
        return pa.schema(
            [
                ("id", pa.string()),
                ("source", pa.string()),
                ("image", pa.list_(image)),
                ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
                ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))]))),
                ("max_tiles", pa.int64()),
                ("independent", pa.bool_()),
                ("targets", pa.string()),
                ("patch_annotations", pa.string()),
            ]
        )

    def encode(self, samples: Sequence[tuple[int, Sample]]) -> bytes:
        import pyarrow as pa

        rows = [_flat(self.row(number, sample, _checked)) for number, sample in samples]
        batch = pa.RecordBatch.from_pylist(rows, schema=self.schema())
        return batch.serialize().to_pybytes()

    def write(self, file: BinaryIO, pieces: Iterator[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        schema = self.schema()
        with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for piece in pieces:
                writer.write_batch(pa.ipc.read_record_batch(piece, schema))


def _checked(content: bytes) -> bytes:
    """The bytes of an image; ImageError where they are of none."""
    image_ending(content)
    return content


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose columns have one type each."""
    if "image" in row and not isinstance(row["image"], list):
        row["image"] = [row["image"]]
    for message in row.get("messages", ()):
        if isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    for key in ("targets", "patch_annotations"):
        if key in row:
            row[key] = _encode(row[key])
    return row


KINDS: dict[str, type[Writer]] = {".jsonl": JsonLinesWriter, ".parquet": ParquetWriter, ".tar": ShardWriter}


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Batch -> its part of the file, in any process."""

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
        contents = container.contents(batch.places)
        samples, faults = list[tuple[int, Sample]](), list[Fault]()
        for number, (place, content) in enumerate(zip(batch.places, contents, strict=True), batch.first):
            row = container.parse(content, place[2])
            sample = read(row) if isinstance(row, Row) else row
            if isinstance(sample, Fault):
                faults.append(sample)
            else:
                samples.append((number, sample))
        return Piece(*self._encode(samples, faults), read=len(batch.places), faults=faults)

    def _encode(self, samples: list[tuple[int, Sample]], faults: list[Fault]) -> tuple[bytes, int]:
        """All at once; where an image cannot be read, without its row, whose fault is added."""
        if not samples:
            return b"", 0
        try:
            return self.writer.encode(samples), len(samples)
        except (ValueError, OSError):
            whole = []
            for number, sample in samples:
                try:
                    self.writer.encode([(number, sample)])
                    whole.append((number, sample))
                except (ValueError, OSError) as error:
                    faults.append(_fault(sample, str(error)))
            return (self.writer.encode(whole), len(whole)) if whole else (b"", 0)


def _fault(sample: Sample, reason: str) -> Fault:
    from mini_internvl.data import place_of

    file, place = place_of(sample.place)
    return Fault(file=Path(file), place=place, reason=reason)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    inside: bool | None = None,
    format: str = "",
    skip: bool = False,
    workers: int = 0,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> tuple[int, list[Fault]]:
    """Write the rows of a source, each once, to a file whose ending tells its kind; whole or not at all.

    Args:
        source: a file or folder of rows, or a meta JSON, as in training.
        inside: whether images go into the file; ``None``: in Parquet and shards, not in JSON lines.
        skip: leave out rows that cannot be used; else the first batch with one raises DataError.
        on_progress: gets the rows that were read.

    Returns:
        Rows that were written, and those that were left out (the first ``KEPT_FAULTS``).
    """
    out = Path(out)
    kind = KINDS.get(out.suffix.lower())
    if kind is None:
        raise DataError(f"{out}: the kind of file is told by its ending; known: {', '.join(KINDS)}")
    if out.exists():
        raise DataError(f"{out} exists already; give a new file")
    parts = list(find_parts(Path(source), Check()))
    containers = [open_container(part.path) for part in parts]
    writer = kind(out=out, inside=kind is not JsonLinesWriter if inside is None else inside)
    work = Convert(containers=containers, parts=parts, format=format, writer=writer)
    faults, done = list[Fault](), {"written": 0, "read": 0}

    def pieces() -> Iterator[bytes]:
        for piece in ordered_map(work, _batches(containers, INSIDE_ROWS if writer.inside else BATCH_ROWS), workers):
            if piece.faults and not skip:
                raise DataError.of(piece.faults, "mend the rows (minivl data check), or leave them out with --skip")
            faults.extend(piece.faults[: KEPT_FAULTS - len(faults)])
            done["written"] += piece.rows
            done["read"] += piece.read
            if piece.data:
                yield piece.data
            on_progress(done["read"])

    clear_drafts(out)
    with new_file(out) as draft, draft.open("wb") as file:
        writer.write(file, pieces())
        if not done["written"]:
            raise DataError.of(faults, "no row is left") if faults else DataError(f"{source} holds no samples")
    return done["written"], faults


def _batches(containers: Sequence[Container], rows: int) -> Iterator[Batch]:
    first = 0
    for number, container in enumerate(containers):
        for places in container.batches(rows, BATCH_BYTES):
            yield Batch(number, first, places)
            first += len(places)


def image_bytes(image: Any) -> bytes:
    """The file of an image as it is, never encoded again; ImageError where it cannot be read."""
    if isinstance(image, bytes):
        return image
    _, stream = open_source(image)
    with stream:
        return stream.read()


def _ending(content: bytes) -> str:
    """The ending of an image's name; ValueError where its format has none that a shard is read with."""
    found = image_ending(content)
    if found not in IMAGE_ENDINGS:
        raise ValueError(f"an image of the format {found} has no place in a shard; convert it to PNG or JPEG")
    return found


def _data_url(content: bytes) -> str:
    ending = _ending(content)
    return f"data:image/{ending};base64,{base64.b64encode(content).decode()}"
