"""Kinds of files that rows are written to: JSON lines, a WebDataset tar, Parquet.

A writer turns samples into the bytes of a piece, in any process; pieces that follow each other are the file. Parquet is
more than its pieces, so :meth:`Writer.assembled` writes it. It cannot hold values of free shape: ``targets`` and
``patch_annotations`` are JSON texts there.
"""

from __future__ import annotations

import abc
import base64
import functools
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from mini_internvl.data.containers import IMAGE_ENDINGS
from mini_internvl.data.rows import image_ending, stored, to_row
from mini_internvl.inputs.images import open_source
from mini_internvl.records import Sample

_encode = json.JSONEncoder(ensure_ascii=False).encode
BLOCK = 512  # bytes of a block of a tar file


@dataclass(frozen=True, kw_only=True)
class Writer(abc.ABC):
    """One kind of file."""

    out: Path
    inside: bool  # whether images stand in the file; else their paths do
    tail: ClassVar[bytes] = b""  # what ends a file behind its pieces
    assembles: ClassVar[bool] = False  # whether more than that makes a file of pieces: :meth:`assembled` then

    @abc.abstractmethod
    def encode(self, samples: Sequence[tuple[int, Sample]]) -> bytes:
        """A piece of the file with these numbered samples; ValueError where an image cannot be read."""

    def is_whole(self, path: Path, rows: int, size: int) -> bool:
        """Whether a file is that of pieces with so many rows and bytes."""
        return path.stat().st_size == size + len(self.tail)

    def assembled(self, path: Path) -> AbstractContextManager[Callable[[bytes], Any]]:
        """Takes the pieces of a file, and writes it to ``path``."""
        raise NotImplementedError

    def row(self, number: int, sample: Sample, inside: Callable[[Any], Any]) -> dict[str, Any]:
        """A sample's row; ``inside`` makes what the row holds of the bytes of an image. Videos stay where they are."""
        sample = _plain(sample)
        numbers, (folder, name) = itertools.count(1), self.beside

        def outside(image: Any) -> str:
            return stored(image, folder, f"{name}/{number:06d}-{next(numbers)}")

        if self.inside:
            return to_row(sample, stored=lambda image: inside(image_bytes(image)), video=outside)
        return to_row(sample, stored=outside)

    @functools.cached_property
    def beside(self) -> tuple[Path, str]:
        """The folder of the file, and that of images that stand beside it, below the first."""
        return self.out.parent, f"images/{self.out.stem}"


def _plain(sample: Sample) -> Sample:
    """The sample with texts that are alone as texts, not as lists of one: Parquet knows lists only; and with images of
    OpenAI's form as all others are."""
    messages: list[Any] = list(sample.messages)
    for place, message in enumerate(messages):
        content = message["content"]
        if isinstance(content, str):
            continue
        if len(content) == 1 and content[0].keys() == {"type", "text"}:
            messages[place] = {**message, "content": content[0]["text"]}
        elif any(part.get("type") == "image_url" for part in content):
            messages[place] = {**message, "content": [_plain_part(part) for part in content]}
    return sample if messages == sample.messages else replace(sample, messages=messages)


def _plain_part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    address = part.get("image_url") if part.get("type") == "image_url" else None
    if not isinstance(address, Mapping) or "url" not in address:
        return part
    others = {key: value for key, value in part.items() if key not in ("type", "image_url")}
    return {"type": "image", "image": address["url"], **others}


class JsonLinesWriter(Writer):
    """InternVL's jsonl; images inside are data URLs."""

    def encode(self, samples: Sequence[tuple[int, Sample]]) -> bytes:
        rows = (self.row(number, sample, _data_url) for number, sample in samples)
        return "".join(_encode(row) + "\n" for row in rows).encode()


class ShardWriter(Writer):
    """A WebDataset tar: for each row ``NUMBER.json`` and its images, ``NUMBER.0.jpg``."""

    tail: ClassVar[bytes] = bytes(2 * BLOCK)

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

    assembles: ClassVar[bool] = True

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
        try:
            batch = pa.RecordBatch.from_pylist(rows, schema=self.schema())
        except (TypeError, OverflowError) as error:  # pyarrow's own for a value of another type, or a large number
            raise ValueError(f"a value has no place in Parquet ({error}); mend it, or write .jsonl or .tar") from None
        return batch.serialize().to_pybytes()

    def is_whole(self, path: Path, rows: int, size: int) -> bool:
        import pyarrow.parquet

        try:
            return int(pyarrow.parquet.read_metadata(path).num_rows) == rows
        except (pyarrow.ArrowException, OSError):
            return False

    @contextmanager
    def assembled(self, path: Path) -> Iterator[Callable[[bytes], Any]]:
        import pyarrow as pa
        import pyarrow.parquet

        schema = self.schema()
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            yield lambda piece: writer.write_batch(pa.ipc.read_record_batch(piece, schema))


def _checked(content: bytes) -> bytes:
    """The bytes of an image; ImageError where they are of none."""
    image_ending(content)
    return content


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose columns have one type each; ValueError where a part of a message has no place in them."""
    if "image" in row and not isinstance(row["image"], list):
        row["image"] = [row["image"]]
    for message in row.get("messages", ()):
        if isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        for part in message["content"]:
            if part.get("type") not in ("text", "image"):
                raise ValueError(f"Parquet has no place for parts of the type {part.get('type')}; write .jsonl or .tar")
            for key in ("scale", "max_tiles"):
                if not isinstance(part.get(key), int | None):
                    raise ValueError(f"{key} is {part[key]!r}; in Parquet it must be a whole number")
    for key in ("targets", "patch_annotations"):
        if key in row:
            row[key] = _encode(row[key])
    return row


KINDS: dict[str, type[Writer]] = {".jsonl": JsonLinesWriter, ".parquet": ParquetWriter, ".tar": ShardWriter}


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
