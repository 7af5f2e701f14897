"""The pictures of a source: a folder, or a file of rows that have images (Parquet, WebDataset, tables, JSON lines).

A WebDataset shard needs no ``NAME.json`` beside its pictures here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.data import DataError, Fault
from mini_internvl.data.containers import IMAGE_ENDINGS, Shard
from mini_internvl.data.files import open_container
from mini_internvl.data.formats import columns
from mini_internvl.data.formats._turns import absent, images
from mini_internvl.inputs.images import open_source

PACKED = (".parquet", ".tar")  # endings of files of rows that are taken from a folder; others are named themselves


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that is not decoded yet."""

    name: str
    """Unique in its source: its path in a folder, ``FILE/NUMBER`` or ``FILE/NUMBER-PLACE`` in a file of rows."""
    image: str | bytes
    file: Path
    """The file of rows, or the folder, that it stands in."""
    place: str
    """Where it stands there."""


def find_files(source: Path) -> Sequence[Path]:
    """The pictures and the files of rows that a source means, in the order of their names.

    Raises:
        DataError: the source is missing, or a folder without pictures.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} is missing; give a folder of pictures, a Parquet file or a WebDataset shard")
    wanted = {f".{ending}" for ending in IMAGE_ENDINGS} | {*PACKED}
    found = [file for file in source.rglob("*") if file.suffix.lower() in wanted and file.is_file()]
    if not found:
        raise DataError(f"{source} holds no picture, Parquet file or WebDataset shard; is it the right folder?")
    return sorted(found, key=lambda file: file.relative_to(source).parts)


def pictures(source: Path, files: Sequence[Path]) -> Iterator[Picture | Fault]:
    """The pictures of files that :func:`find_files` gave, in order; a row without one is a Fault."""
    for file in files:
        name = file.name if file == source else file.relative_to(source).as_posix()
        if not _is_utf8(name):
            yield Fault(file=source, place=ascii(name), reason="the file's name is not valid UTF-8; rename it")
        elif is_picture(file):
            folder = file.parent if file == source else source
            yield Picture(name=name, image=str(file.resolve()), file=folder, place=name)
        else:
            yield from _of_rows(file, name)


def is_picture(file: Path) -> bool:
    """Whether a file is a picture by its ending."""
    return file.suffix.lower().lstrip(".") in IMAGE_ENDINGS


def _is_utf8(name: str) -> bool:
    return name == name.encode(errors="replace").decode()


def _of_rows(file: Path, name: str) -> Iterator[Picture | Fault]:
    container = open_container(file)
    for _, _, number, data in container.spans():
        place = f"{container.place} {number}"
        try:
            if data is None:
                raise ValueError("the row is too large; keep its pictures in files beside it")
            if isinstance(container, Shard):
                members = container.members(data)
                found: list[str | bytes] = [members[key] for key in sorted(members) if is_picture(Path(key))]
            else:
                found = _of_columns(container.decode(data), file.parent)
            if not found:
                raise ValueError("the row has no picture; take it out")
        except ValueError as error:
            yield Fault(file=file, place=place, reason=str(error))
            continue
        for one, image in enumerate(found, 1):
            own = f"{name}/{number:08d}" + (f"-{one}" if len(found) > 1 else "")
            yield Picture(name=own, image=image, file=file, place=place)


def _of_columns(raw: Mapping[str, Any], folder: Path) -> list[str | bytes]:
    """The images of a row, under any usual name of their column; paths are joined to the folder."""
    named = {key.lower(): value for key, value in raw.items()}
    field = next((key for key in columns.IMAGE if not absent(named.get(key))), None)
    if field is None:
        return []
    found = images({field: columns.image(named[field])}, field)
    return [_joined(one, folder) for one in found]


def _joined(image: str | bytes, folder: Path) -> str | bytes:
    if isinstance(image, str) and image.startswith("data:"):
        return open_source(image)[1].read()
    return str((folder / image).resolve()) if isinstance(image, str) else image
