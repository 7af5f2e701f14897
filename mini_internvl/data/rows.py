"""Sample <-> row, both ways, every field.

A row that we write is InternVL's (``conversations`` and ``image``) where the sample fits, for other tools to read, and
OpenAI's (``messages``) otherwise: named or scaled images, several images without placeholders. Fields that neither has
keep their own names beside them. A row that was written, read and written again is the same row.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mini_internvl.data import DataError, Fault, Row, files, formats, where
from mini_internvl.data.formats._turns import shown
from mini_internvl.files import new_file
from mini_internvl.inputs.images import read_header
from mini_internvl.inputs.messages import PLACEHOLDER, PLACEHOLDERS, beside
from mini_internvl.records import Message, PatchAnnotation, Sample, Target

MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios", "objects"})
"""Keys of things to see or hear: a format that does not read one of them must not pass over it."""


def to_sample(
    row: Row,
    *,
    root: Path | None = None,
    format: str = "",
    source: str = "",
    max_tiles: int | None = None,
    independent: bool = False,
) -> Sample | Fault:
    """Read a row; relative image paths begin from ``root``, or else from the file's folder.

    ``format`` is the name or path of the row's format; "" finds it by the row's keys. ``source`` ("" is the file's name
    without its ending) and ``max_tiles`` are for a row that has none. ``independent`` holds whatever the row says.
    """
    raw = row.raw
    try:
        module = formats.find(tuple(raw), format)
        for key in formats.unread(raw, format):
            if key in MEDIA:
                raise ValueError(f'"{key}" would reach no sample: the format {module.__name__} does not read it')
        messages = beside(module.messages(raw), row.file.parent if root is None else root)
        named = raw.get("source")
        return Sample(
            id=row.id,
            messages=messages,
            source=named if named and isinstance(named, str) else source or row.file.stem,
            max_tiles=_typed(raw, "max_tiles", int, "a whole number from 1") or max_tiles,
            patch_annotations=_annotations(raw["patch_annotations"]) if raw.get("patch_annotations") else (),
            independent=bool(_typed(raw, "independent", bool, "true or false")) or independent,
            targets=_targets(raw["targets"]) if raw.get("targets") is not None else {},
            place=where(row),
        )
    except (KeyError, IndexError, AttributeError) as error:  # of a format of one's own that does not look first
        reason = f"the row has no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        return Fault(file=row.file, place=row.place, reason=reason)
    except (ValueError, TypeError) as error:
        return Fault(file=row.file, place=row.place, reason=str(error))


def _typed(raw: Mapping[str, Any], key: str, kind: Any, wanted: str) -> Any:
    value = raw.get(key)
    if value is not None and (type(value) is not kind or (kind is int and value < 1)):
        raise ValueError(f"{key} is {shown(value)}; it must be {wanted}")
    return value


def _annotations(value: Any) -> tuple[PatchAnnotation, ...]:
    value = _from_text(value)
    known = {field.name for field in fields(PatchAnnotation)}
    found = []
    for one in value if isinstance(value, list) else [value]:
        box = one.get("box") if isinstance(one, Mapping) else None
        numbers = [side for side in box if type(side) in (int, float)] if isinstance(box, list) else []
        if not isinstance(one, Mapping) or not {"text", "box"} <= one.keys() <= known or len(numbers) != 4:
            raise ValueError(
                f"patch_annotations holds {shown(one)}; each has text and box (four numbers), and may have "
                "place, line, colour"
            )
        found.append(PatchAnnotation(**{**one, "box": tuple(numbers)}))
    return tuple(found)


def _from_text(value: Any) -> Any:
    """What a JSON text holds, as tables and Parquet have it; anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) and value else value
    except ValueError:
        return value


def _targets(value: Any) -> dict[str, Target]:
    value = _from_text(value)
    if not isinstance(value, Mapping):
        raise ValueError(f'targets is {shown(value)}; it must name its values, such as {{"speed": 3.2}}')
    found: dict[str, Target] = {}
    for name, target in value.items():
        if _is_number(target) or isinstance(target, str):
            found[name] = target
        elif isinstance(target, list) and target and all(map(_is_number, target)):
            found[name] = tuple(target)
        elif target is not None:
            raise ValueError(f"targets.{name} is {shown(target)}; it must be a number, a list of numbers or a text")
    return found


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def to_row(
    sample: Sample,
    *,
    stored: Callable[[Any], str | bytes] = os.fspath,
    video: Callable[[Any], str | bytes] | None = None,
) -> dict[str, Any]:
    """The row of a sample whose images are paths or data URLs, or are turned into those by ``stored``, or into bytes
    for a file that can hold them; ``video`` does the same for videos, where it is another."""
    row: dict[str, Any] = {"id": sample.id}
    if sample.source:
        row["source"] = sample.source
    kinds = {"image": stored, "video": video or stored}
    messages = [_plain(message, kinds) for message in sample.messages]
    row |= _conversations(messages) or {"messages": messages}
    if sample.max_tiles is not None:
        row["max_tiles"] = sample.max_tiles
    if sample.independent:
        row["independent"] = True
    if sample.targets:
        row["targets"] = {name: list(one) if isinstance(one, tuple) else one for name, one in sample.targets.items()}
    if sample.patch_annotations:
        row["patch_annotations"] = [
            {key: value for key, value in asdict(one).items() if value is not None} | {"box": list(one.box)}
            for one in sample.patch_annotations
        ]
    return row


def _plain(message: Message, kinds: Mapping[str, Callable[[Any], str | bytes]]) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return {**message}
    parts = [{**part, **{key: stored(part[key]) for key, stored in kinds.items() if key in part}} for part in content]
    return {**message, "content": parts}


def _conversations(messages: Sequence[Message]) -> dict[str, Any] | None:
    """InternVL's keys, or ``None`` where they cannot say what the messages say."""
    if not messages or messages[0]["role"] == "assistant":
        return None
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    every = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    lone = sum("image" in part for part in every) == 1
    images: list[str | bytes] = []
    turns = []
    for message in messages:
        said = _marked(message, images, lone=lone)
        if said is None or message["role"] not in names:
            return None
        turns.append({"from": names[message["role"]], "value": said})
    beside: dict[str, Any] = {"image": images[0] if len(images) == 1 else images} if images else {}
    return {**beside, "conversations": turns}


def _marked(message: Message, images: list[str | bytes], *, lone: bool) -> str | None:
    """The text of a turn with a placeholder for each of its images, which are added to ``images``."""
    content = message["content"]
    if isinstance(content, str):
        return None if _has_placeholder(content) or "<img>" in content else content
    *shown_first, last = content or [{}]
    if last.keys() != {"type", "text"} or "<img>" in last["text"]:
        return None
    for part in shown_first:
        if part.keys() != {"type", "image"} or not isinstance(part["image"], str | bytes):
            return None
        images.append(part["image"])
    placeholders = len(PLACEHOLDERS.findall(last["text"])) if PLACEHOLDER in last["text"] else 0
    if lone and shown_first and not placeholders:
        return f"{PLACEHOLDER}\n{last['text']}"
    return last["text"] if shown_first and placeholders == len(shown_first) else None


def _has_placeholder(text: str) -> bool:
    return PLACEHOLDER in text and PLACEHOLDERS.search(text) is not None


def write_rows(samples: Iterable[Sample | Fault], path: str | Path) -> tuple[int, list[Fault]]:
    """Write samples as a jsonl file, whole or not at all; DataError where there is no sample.

    Images that are no files (PIL, bytes) are written to ``images/`` beside it; paths are kept, relative to the file's
    folder where they lie below it. Returns the number of rows, and the faults among ``samples``, which are left out.
    """
    path = Path(path)
    rows, faults = 0, list[Fault]()
    with new_file(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        for sample in samples:
            if isinstance(sample, Fault):
                faults.append(sample)
            else:
                file.write(row_line(sample, path.parent, f"images/{path.stem}/{rows:06d}"))
                rows += 1
        if faults and not rows:
            raise DataError.of(faults, "no row is left")
        if not rows:
            raise DataError(f"{path}: there is no sample to write")
    return rows, faults


def row_line(sample: Sample, folder: Path, name: str) -> str:
    """The line of a jsonl file in ``folder``; images that are no files yet are written there, to ``name-N``."""
    numbers = itertools.count(1)
    row = to_row(sample, stored=lambda image: stored(image, folder, f"{name}-{next(numbers)}"))
    return json.dumps(row, ensure_ascii=False) + "\n"


def stored(image: Any, folder: Path, name: str) -> str:
    """What a row in ``folder`` says of an image: its path, or that of ``name`` with an ending, where it is written."""
    from PIL import Image

    if isinstance(image, str | os.PathLike):
        given = os.fspath(image)
        if given.startswith(("data:", "http://", "https://")):
            return given
        whole, above = os.path.abspath(given), _above(os.fspath(folder))
        return whole[len(above) :].replace(os.sep, "/") if whole.startswith(above) else whole
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, Image.Image):
        image.save(folder / f"{name}.png", compress_level=4)
        return f"{name}.png"
    ending = image_ending(image)
    (folder / f"{name}.{ending}").write_bytes(image)
    return f"{name}.{ending}"


def _above(folder: str) -> str:
    """What an absolute path in a folder begins with."""
    return _absolute(folder if os.path.isabs(folder) else os.path.abspath(folder))


@functools.lru_cache(maxsize=64)
def _absolute(folder: str) -> str:
    return os.path.join(os.path.normpath(folder), "")


def image_ending(content: bytes) -> str:
    """The usual ending of the name of an image file with this content; ImageError where it is no image."""
    with read_header(io.BytesIO(content), "the image") as opened:
        found = (opened.format or "").lower()
    return {"jpeg2000": "jp2", "mpo": "jpeg", "dicom": "dcm"}.get(found, found)


def read_rows(path: str | Path, *, root: Path | None = None, format: str = "") -> Iterator[Sample | Fault]:
    """The samples of a file, one after the other; arguments as in :func:`to_sample`, DataError as in ``files.scan``."""
    for row in files.scan(path):
        yield row if isinstance(row, Fault) else to_sample(row, root=root, format=format)


def read_samples(path: str | Path, *, root: Path | None = None, format: str = "") -> list[Sample]:
    """All samples of a file at once, for small ones; DataError lists the rows that cannot be used."""
    found = list(read_rows(path, root=root, format=format))
    if faults := [fault for fault in found if isinstance(fault, Fault)]:
        raise DataError.of(faults, "mend the rows or take them out")
    return [sample for sample in found if isinstance(sample, Sample)]
