"""Pictures without text, for an encoder that trains alone: of a folder, or those of any source, each once.

A picture is a sample whose one message holds it. A file that several rows name is one picture, whatever is asked about
it; pictures that are given as bytes are told apart by their bytes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mini_internvl.data import DataError, Fault
from mini_internvl.data.containers import IMAGE_ENDINGS
from mini_internvl.data.sources import Sizes, Source
from mini_internvl.inputs.images import LazyImage
from mini_internvl.inputs.messages import ImagePart, Turn, image_parts
from mini_internvl.records import Sample

SIZE = (1, 0, 1)  # tokens, supervised tokens and tiles of a picture: one place, so that it counts


def picture_folder(folder: Path) -> Source:
    """The pictures below a folder, by their paths; DataError where there is none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one that holds pictures")
    endings = tuple(f".{ending}" for ending in IMAGE_ENDINGS)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    if not found:
        raise DataError(f"{folder} holds no pictures ({', '.join(endings)})")
    digest = hashlib.blake2b(digest_size=16)
    for path in found:
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())

    def read(place: int) -> Sample:
        path = found[place]
        name = path.relative_to(folder).as_posix()
        return _sample(ImagePart(source=os.fspath(path)), Sample(id=name, messages=(), source=folder.name))

    return Source(read, len(found), fingerprint=digest.hexdigest(), sizes=_sizes(len(found)))


def each_picture(source: Source) -> Source:
    """The pictures of a source, each once, in the order of its samples; of drawn samples the first of each.

    Every sample is read once to know them. DataError: there is none.
    """
    if not source.count:
        return replace(source, read=lambda place: _first(source.read(place)), measure=None, sizes=None)
    places, numbers, seen = list[int](), list[int](), set[str]()
    for place in range(source.count):
        sample = source.read(place)
        for number, part in enumerate([] if isinstance(sample, Fault) else image_parts(sample.messages)):
            if (name := _name(part)) not in seen:
                seen.add(name)
                places.append(place)
                numbers.append(number)
    if not places:
        raise DataError("no sample of the source has a picture; give one that has")
    where = np.array(places, np.int64), np.array(numbers, np.int32)

    def read(place: int) -> Sample | Fault:
        sample, number = source.read(int(where[0][place])), int(where[1][place])
        return sample if isinstance(sample, Fault) else _picture(sample, number)

    return Source(
        read,
        len(places),
        fingerprint=hashlib.blake2b(f"pictures of {source.fingerprint}".encode(), digest_size=16).hexdigest(),
        warnings=source.warnings,
        groups=None if source.groups is None else source.groups[where[0]],
        faults=source.faults,
        sizes=_sizes(len(places)),
    )


def _sizes(count: int) -> Sizes:
    return Sizes([np.array([SIZE], np.int32)], [count])


def _first(sample: Sample | Fault) -> Sample | Fault:
    if isinstance(sample, Fault):
        return sample
    if not image_parts(sample.messages):
        raise DataError(f"sample {sample.source}/{sample.id} has no picture; give another source")
    return _picture(sample, 0)


def _picture(sample: Sample, number: int) -> Sample:
    """One picture of a sample; what is known of its patches stays where it is the only one."""
    parts = image_parts(sample.messages)
    known = sample.patch_annotations if len(parts) == 1 else ()
    name = sample.id if len(parts) == 1 else f"{sample.id}#{number}"
    return _sample(parts[number], replace(sample, id=name, patch_annotations=known))


def _sample(part: ImagePart, sample: Sample) -> Sample:
    turn: Any = Turn(role="user", parts=(part,))
    return replace(sample, messages=(turn,), independent=False, targets={})


def _name(part: ImagePart) -> str:
    """Tells a picture from others."""
    source = part.source
    if isinstance(source, LazyImage):
        return f"{source.key} {part.scale}"
    if isinstance(source, str | os.PathLike) and not os.fsdecode(source).startswith("data:"):
        return f"{os.path.abspath(os.fsdecode(source))} {part.scale}"
    content = f"{source.mode} {source.size}".encode() + source.tobytes() if isinstance(source, Image.Image) else source
    content = content.encode() if isinstance(content, str) else content
    return f"{hashlib.blake2b(content, digest_size=16).hexdigest()} {part.scale}"
