"""A folder of text read in pictures, and the training rows made of it.

``texts.jsonl`` holds every picture of the source in order, with all that was read in it or why it could not be read;
it grows line by line, so that a killed run goes on. ``rows.jsonl`` and ``faults.jsonl`` are made of it and of
``reviews.jsonl``, ``ocr.json`` says what was read and what came of it, ``images/`` holds the pictures that are no
files of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.containers import JsonLines
from mini_internvl.data.ocr import Line, PictureText, reader
from mini_internvl.data.ocr.pictures import Picture, find_files, is_picture, pictures
from mini_internvl.data.ocr.questions import ask
from mini_internvl.data.ocr.reviews import CORRECT, REJECT, Review, read_reviews, reviewed
from mini_internvl.data.rows import stored, write_rows
from mini_internvl.data.workers import ordered_map
from mini_internvl.files import drop_half_line, read_object, write_json, write_text
from mini_internvl.inputs.images import ImageError, load_image
from mini_internvl.locks import lock, unlock
from mini_internvl.records import Interrupted, Sample

TEXTS, ROWS, FAULTS, RECORD = "texts.jsonl", "rows.jsonl", "faults.jsonl", "ocr.json"
LOCK = ".lock"
MIN_CONFIDENCE = 0.5

Reader = Callable[[Image.Image], list[Line]]
Map = Callable[[Callable[[Any], Any], Iterable[Any], int], Iterator[Any]]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of the pictures."""

    rows: int
    without_text: int  # pictures in which no line was read with enough confidence
    rejected: int  # by a person
    corrected: int
    faults: list[Fault]


def read_source(
    source: Path,
    out: Path,
    *,
    min_confidence: float = MIN_CONFIDENCE,
    workers: int = 1,
    read: Reader = reader.read_lines,
    reader_name: str = "",
    mapped: Map = ordered_map,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Written:
    """Read the text of a source's pictures into the folder ``out`` and write its rows; what is read already stays.

    The rows are the same however many ``workers`` read, and however often the run was stopped.

    Args:
        min_confidence: lines below it (0 to 1) reach no row; they are kept for another limit and for reviews.
        read: gives the lines of a picture; it must pickle where processes are not forked.
        reader_name: of what reads; the installed RapidOCR where it is empty.
        mapped: how the work is spread: ``workers.ordered_map`` or ``ray_workers.ray_map``.
        on_progress: called with the pictures done and their number, 0 where it is not known.

    Raises:
        DataError: no picture, none with text, or ``out`` holds what was read in another source.
        Interrupted: stopped; the same call goes on.
    """
    files = find_files(source)
    total = len(files) if all(map(is_picture, files)) else 0
    identity = {"source": str(source.resolve()), "reader": reader_name or reader.name()}
    _claim(out, identity)
    out.mkdir(parents=True, exist_ok=True)
    with held(out):
        write_json(out / RECORD, {**identity, "min_confidence": min_confidence})
        items, done = _left(source, pictures(source, files), out)
        work = partial(_read_picture, out=out.absolute(), read=read)
        with (out / TEXTS).open("a", encoding="utf-8", newline="\n") as file:
            for record in mapped(work, items, workers):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
                done += 1
                on_progress(done, total)
                if should_stop():
                    raise Interrupted(f"stopped after {done:,} pictures")
        return write(out)


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Read or review in a folder alone; DataError names another process that does."""
    descriptor = lock(out / LOCK, remedy="choose another folder", error=DataError)
    try:
        yield
    finally:
        unlock(descriptor)


def _claim(out: Path, identity: Mapping[str, str]) -> None:
    """DataError where the folder holds what was read elsewhere, or anything else."""
    if (out / RECORD).is_file():
        known = read_object(out / RECORD, error=DataError)
        for key, value in identity.items():
            if known.get(key) != value:
                raise DataError(
                    f"{out} holds the text of the {key} {known.get(key)}, not of {value}; choose another folder"
                )
    elif out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
        raise DataError(f"{out} exists and holds no text that was read in pictures; choose another folder")


def _left(source: Path, found: Iterator[Picture | Fault], out: Path) -> tuple[Iterator[Picture | Fault], int]:
    """The pictures that are not read yet, and how many are; DataError where others were read than the source holds."""
    path, done = out / TEXTS, 0
    if not path.is_file():
        return found, done
    drop_half_line(path)
    for row in _records(path):
        picture = next(found, None)
        if row.raw.get("name", row.raw.get("place")) != (picture and _name(picture)):
            raise DataError(f"{path}, {row.place}: {source} was changed since it was read; choose another folder")
        done += 1
    return found, done


def _name(picture: Picture | Fault) -> str:
    return picture.name if isinstance(picture, Picture) else picture.place


def _read_picture(picture: Picture | Fault, *, out: Path, read: Reader) -> dict[str, Any]:
    """The record of a picture: its text, or its fault."""
    if isinstance(picture, Fault):
        return {"place": picture.place, "file": str(picture.file), "fault": picture.reason}
    try:
        image = load_image(picture.image)
        lines = read(image)
        place = stored(picture.image, out, f"images/{picture.name}") if lines else ""
    except (ImageError, OSError) as error:
        beside = {"place": picture.place, "file": str(picture.file), "fault": str(error)}
        return {"name": picture.name, **beside}
    width, height = image.size
    return PictureText(name=picture.name, image=place, width=width, height=height, lines=lines).as_json()


def _records(path: Path) -> Iterator[Row]:
    """The lines of ``texts.jsonl``, without one that is half written."""
    container = JsonLines(path)
    for _, _, number, data in container.spans():
        if data is not None and not data.endswith(b"\n"):
            return
        row = container.parse(data, number)
        if isinstance(row, Fault):
            raise DataError(f"{row}; delete {path} to read the pictures again")
        yield row


def read_texts(out: Path) -> Iterator[PictureText | Fault]:
    """What was read in each picture, in order, one in memory; DataError where the file is damaged."""
    for row in _records(out / TEXTS):
        if "fault" in row.raw:
            yield Fault(file=Path(row.raw["file"]), place=row.raw["place"], reason=row.raw["fault"])
            continue
        try:
            yield PictureText.of(dict(row.raw))
        except ValueError as error:
            raise DataError(f"{row.file}, {row.place}: {error}; delete {row.file} to read the pictures again") from None


def settings(out: Path) -> dict[str, Any]:
    """What a folder was made of; DataError where it holds no text that was read in pictures."""
    if not (out / TEXTS).is_file():
        raise DataError(f"{out} holds no text that was read in pictures; first: minivl data ocr SOURCE {out}")
    return read_object(out / RECORD, error=DataError)


def write(out: Path) -> Written:
    """Write the rows of a folder again, by its reviews and its least confidence; DataError where no row is left."""
    known, reviews = settings(out), read_reviews(out)
    counts = {"without_text": 0, "rejected": 0, "corrected": 0}
    samples = _samples(out, reviews, float(known["min_confidence"]), counts)
    try:
        rows, faults = write_rows(samples, out / ROWS)
    except DataError as error:
        (out / ROWS).unlink(missing_ok=True)
        raise DataError(
            f"{error} ({counts['without_text']:,} pictures without text of confidence {known['min_confidence']:g} or "
            f"more, {counts['rejected']:,} rejected); try a lower --min-confidence"
        ) from None
    lines = [{**asdict(fault), "file": str(fault.file)} for fault in faults]
    write_text(out / FAULTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    written = Written(rows=rows, faults=faults, **counts)
    write_json(out / RECORD, {**known, "rows": rows, "faults": len(faults), **counts})
    return written


def _samples(
    out: Path, reviews: Mapping[str, Review], min_confidence: float, counts: dict[str, int]
) -> Iterator[Sample | Fault]:
    for picture in read_texts(out):
        if isinstance(picture, Fault):
            yield picture
            continue
        review = reviews.get(picture.name)
        lines = reviewed(picture, review, min_confidence)
        counts["rejected"] += bool(review and review.verdict == REJECT)
        counts["corrected"] += bool(review and review.verdict == CORRECT)
        counts["without_text"] += not lines and not (review and review.verdict == REJECT)
        if lines:
            try:
                yield ask(picture, lines, out / picture.image)
            except ValueError as error:
                yield Fault(file=out / TEXTS, place=picture.name, reason=str(error))
