"""Every row of a source looked at in depth: what a start of training does not look for, or tells of one row only.

Rows stand in the indexes that training reads, with their faults and sizes. Here their images are decoded and hashed,
in worker processes; what follows from several rows (copies, near-duplicates, the same question with other answers) is
found from hashes (``duplicates``).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mini_internvl.data import DataError, Fault, formats, where
from mini_internvl.data.check import Measure
from mini_internvl.data.duplicates import Appearances, Pairs, first_equal
from mini_internvl.data.oddities import TAKEN_OUT, oddities
from mini_internvl.data.sources import RowFiles
from mini_internvl.data.workers import ordered_map
from mini_internvl.inputs.hashes import ImageHashes, Look, Looks, look
from mini_internvl.inputs.images import load_image, open_source, read_header
from mini_internvl.inputs.messages import Turn, normalise

ERROR, WARNING, NOTE = "error", "warning", "note"
"""Training refuses the row; it would train on a likely mistake; good to know, and not wrong."""
BATCH = 64  # rows that a worker looks at in one go
TINY = 8  # pixels: an image with a shorter side shows little
KEPT_IMAGES = 1 << 16  # whose content is remembered by each worker
ORIENTATION = 0x0112  # EXIF
TURNED = "EXIF turns its image, which is read upright; boxes must be those of the upright one"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that was found in a row."""

    file: Path
    place: str
    level: str  # ``error``, ``warning`` or ``note``
    kind: str  # ``row``, ``key``, ``text``, ``box``, ``image``, ``copy``, ``near-duplicate``, ...
    message: str  # what it is; and the remedy
    fix: str = ""  # what becomes of it in a clean copy; "" where it stays
    part: int = 0  # the number of its file among those of the source, which may hold one twice

    @property
    def where(self) -> str:
        """``FILE:12``."""
        return where(Fault(file=self.file, place=self.place, reason=""))


class Decoded(NamedTuple):
    """What decoding an image told."""

    look: Look | None
    trouble: tuple[str, str, str] | None = None  # level, what is wrong, remedy
    notes: tuple[str, ...] = ()


class Range(NamedTuple):
    """Rows of one file that follow each other."""

    file: int
    start: int
    end: int


@dataclass(kw_only=True)
class Looked:
    """What was seen in a range of rows."""

    findings: list[Finding]
    hashes: np.ndarray  # (rows, 3) uint64: whole sample, its questions and images, its id; 0 of a faulty row
    images: np.ndarray  # (rows,) images of each
    seen: list[tuple[str, str, Look | None]] = field(default_factory=list)
    """(where, SHA-256, look) of every image."""
    pairs: list[list[int]] = field(default_factory=list)
    """Of each row the hashes of its questions with their answers."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """What a test set holds, which a training set must not: where each image and each question without one stands."""

    images: Mapping[str, str]  # SHA-256 -> where
    questions: Mapping[int, str]  # hash -> where
    looks: Looks
    places: Sequence[str]  # of ``looks``
    unread: Sequence[Finding]  # rows that cannot be read, so that nothing is compared with them


@dataclass(frozen=True, kw_only=True)
class Inspector:
    """Looks at rows of files, in any process."""

    rows: RowFiles
    measure: Measure | None  # tells which samples are shortened
    decode: bool  # whether images are decoded: damage and likeness
    test: TestSet | None = None
    unchecked: bool = False  # whether the rows are those of a test set, whose faults no index tells

    def __call__(self, part: Range) -> Looked:
        file, count = self.rows.files[part.file], part.end - part.start
        found = Looked(findings=[], hashes=np.zeros((count, 3), np.uint64), images=np.zeros(count, np.int32))
        first, last = np.searchsorted(file.faulty, (part.start, part.end))
        faulty = set(file.faulty[first:last].tolist())
        for number in range(part.start, part.end):
            found.pairs.append([])
            if number in faulty and not self.unchecked:
                fault = file.row(number)
                assert isinstance(fault, Fault)
                found.findings.append(_finding(fault, ERROR, "row", fault.reason, "", TAKEN_OUT))
            else:
                self._row(part, number, found)
        return found

    def _row(self, part: Range, number: int, found: Looked) -> None:
        file = self.rows.files[part.file]
        start, size, line = file.places[number].tolist()
        row = file.container.parse(file.container.read(start, size), line)
        sample = row if isinstance(row, Fault) else self.rows.readers[part.file](row)
        if isinstance(row, Fault) or isinstance(sample, Fault):  # of a test set, whose rows were not checked
            fault = row if isinstance(row, Fault) else sample
            assert isinstance(fault, Fault)
            found.findings.append(_finding(fault, ERROR, "row", fault.reason))
            return
        add = functools.partial(_finding, Fault(file=row.file, place=row.place, reason=""))
        try:
            turns = normalise(sample.messages)
            digests = [_hasher.one(image.source) for turn in turns for image in turn.images]
        except ValueError as error:
            found.findings.append(add(ERROR, "row", str(error), "", TAKEN_OUT))
            return
        findings = found.findings
        for one in oddities(turns) if turns else ():
            findings.append(add(WARNING, one.kind, one.what, one.remedy, one.fix))
        for key in formats.unread(row.raw, self.rows.format):
            findings.append(add(WARNING, "key", f'the key "{key}" is not read', "take it out", "it is not written"))
        if self.measure and file.shortened and (size := self.measure(sample)) and size.shortened:
            what = f"it is longer than the limit and shortened to {size.tokens:,} tokens and {size.tiles:,} tiles"
            findings.append(add(NOTE, "length", what, "raise the limit to train on all of it"))
        asked, own = _hashes(turns, digests)
        found.hashes[number - part.start] = own, asked, _hash64([part.file, row.id])
        found.images[number - part.start] = len(digests)
        here, looks = where(row), list[Look | None]()
        for source, digest in zip((image.source for turn in turns for image in turn.images), digests, strict=True):
            decoded = _decoded(source, digest) if self.decode else Decoded(None)
            looks.append(decoded.look)
            if decoded.trouble:
                level, what, remedy = decoded.trouble
                findings.append(add(level, "image", what, remedy, TAKEN_OUT))
            boxed = any("<box>" in turn.text for turn in turns)
            findings += [add(NOTE, "image", note) for note in decoded.notes if note != TURNED or boxed]
        found.seen += [(here, digest, one) for digest, one in zip(digests, looks, strict=True)]
        found.pairs[-1] += _pairs(turns)
        if self.test and (met := _overlap(self.test, asked, digests, looks)):
            findings.append(add(WARNING, "overlap", met, "take it out of one of the two", TAKEN_OUT))


def _finding(at: Fault, level: str, kind: str, what: str, remedy: str = "", fix: str = "") -> Finding:
    message = f"{what}; {remedy}" if remedy else what
    return Finding(file=at.file, place=at.place, level=level, kind=kind, message=message, fix=fix)


def _overlap(test: TestSet, asked: int, digests: Sequence[str], looks: Sequence[Look | None]) -> str:
    """What a row shares with the test set; "" for nothing."""
    for digest, appearance in zip(digests, looks, strict=True):
        if digest in test.images:
            return f"its image is also in the test set, at {test.images[digest]}"
        if appearance and (number := test.looks.similar(appearance)) is not None:
            return f"its image looks like one of the test set, at {test.places[number]}"
    if not digests and asked in test.questions:
        return f"its question is also in the test set, at {test.questions[asked]}"
    return ""


def _hashes(turns: Sequence[Turn], digests: Sequence[str]) -> tuple[int, int]:
    """Of all but the answers, and of the whole sample."""
    told = [[turn.role, *(part if isinstance(part, str) else "" for part in turn.parts)] for turn in turns]
    spoken = [turn for turn in told if turn[0] != "assistant"]
    return _hash64([digests, spoken]), _hash64([digests, told])


def _pairs(turns: Sequence[Turn]) -> list[int]:
    """Of each question with its answer, wherever images stand among them."""
    said = [(turn.role, "".join(part for part in turn.parts if isinstance(part, str)).strip()) for turn in turns]
    return [_hash64(pair) for pair in itertools.pairwise(said) if pair[1][0] == "assistant"]


def _hash64(value: Any) -> int:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") or 1


_hasher = ImageHashes()  # of this process
_known: dict[str, Decoded] = {}  # by content, of this process


def _decoded(source: Any, digest: str) -> Decoded:
    if digest not in _known:
        if len(_known) >= KEPT_IMAGES:
            _known.clear()
        _known[digest] = _decode(source)
    return _known[digest]


def _decode(source: Any) -> Decoded:
    try:
        image = load_image(source)
    except ValueError as error:
        return Decoded(None, (ERROR, str(error), ""))
    if min(image.size) < TINY:
        return Decoded(None, (WARNING, f"its image has {image.width}x{image.height} pixels", "give a larger one"))
    levels: Any = image.getextrema()  # of each channel
    if all(low == high for low, high in levels):
        return Decoded(None, (WARNING, "its image shows one colour and nothing else", "look at where it comes from"))
    try:
        return Decoded(look(image), notes=tuple(_notes(source)))
    except Exception:  # what stands behind the first frame or in EXIF may be damaged, and decoders raise many kinds
        return Decoded(look(image))


def _notes(source: Any) -> Iterator[str]:
    """What of an image file a model does not see as a viewer shows it."""
    name, stream = open_source(source)
    with stream, read_header(stream, name) as opened:
        if getattr(opened, "is_animated", False):
            yield "its image has several frames, of which the first is read; give frames as images"
        if opened.mode in ("RGBA", "LA") and opened.getchannel("A").getextrema()[0] == 0:
            yield "its image has transparent places, whose hidden colours are read; put it on a background"
        if opened.format == "JPEG" and opened.getexif().get(ORIENTATION, 1) != 1:
            yield TURNED


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found in all rows, in their order."""

    findings: list[Finding]
    images: list[np.ndarray]  # of each file, how many images each row has


def inspect(
    rows: RowFiles,
    *,
    measure: Measure | None = None,
    decode: bool = True,
    test: TestSet | None = None,
    workers: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Look at every row. The findings do not depend on ``workers``.

    Args:
        rows: of ``sources.open_rows``; faulty rows are findings.
        measure: tells which samples are shortened.
        decode: whether images are decoded, which finds damage within, and images that look like the test set's.
        test: of :func:`read_test`.
        on_progress: gets the rows that are done, and all.
    """
    inspector = Inspector(rows=rows, measure=measure, decode=decode, test=test)
    parts = list(ranges(rows))
    total = sum(map(len, rows.files))
    done, looked = 0, list[Looked]()
    appearances, pairs = Appearances(), Pairs()
    for part, found in zip(parts, ordered_map(inspector, parts, workers), strict=True):
        numbers = iter([appearances.number(digest, one) for _, digest, one in found.seen])
        for row, (images, said) in enumerate(zip(found.images.tolist(), found.pairs, strict=True), done):
            if images:
                pairs.add(row, itertools.islice(numbers, images), said)
        found.seen, found.pairs = [], []  # the looks of all images need not be held
        looked.append(found)
        done += part.end - part.start
        on_progress(done, total)
    findings = [
        replace(finding, part=part.file)
        for part, found in zip(parts, looked, strict=True)
        for finding in found.findings
    ]
    hashes = np.concatenate([found.hashes for found in looked])
    findings += _copies(rows, hashes, pairs.repeated(len(hashes)))
    findings.sort(key=lambda one: (one.part, int(one.place.rpartition(" ")[2])))
    images = np.concatenate([found.images for found in looked])
    return Inspection(findings=findings, images=np.split(images, np.cumsum([len(file) for file in rows.files])[:-1]))


def read_test(
    rows: RowFiles,
    *,
    decode: bool = True,
    workers: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TestSet:
    """What a test set holds. Rows without an answer count too. DataError where no row can be read."""
    inspector = Inspector(rows=rows, measure=None, decode=decode, unchecked=True)
    parts, done = list(ranges(rows)), 0
    images, questions = dict[str, str](), dict[int, str]()
    looks, places, unread = list[Look](), list[str](), list[Finding]()
    for part, found in zip(parts, ordered_map(inspector, parts, workers), strict=True):
        unread += [one for one in found.findings if one.kind == "row"]
        for here, digest, appearance in found.seen:
            if digest not in images and appearance:
                looks.append(appearance)
                places.append(here)
            images.setdefault(digest, here)
        for number in np.flatnonzero((found.hashes[:, 1] != 0) & (found.images == 0)).tolist():
            questions.setdefault(int(found.hashes[number, 1]), where(_at(rows, part.file, part.start + number)))
        done += part.end - part.start
        on_progress(done, sum(map(len, rows.files)))
    if not images and not questions:
        faults = [Fault(file=one.file, place=one.place, reason=one.message) for one in unread]
        raise DataError.of(faults, "so nothing can be compared with the test set; give it in a format of training data")
    return TestSet(images=images, questions=questions, looks=Looks(looks), places=places, unread=unread)


def ranges(rows: RowFiles) -> Iterator[Range]:
    """All rows, a batch at a time."""
    for number, file in enumerate(rows.files):
        for start in range(0, len(file), BATCH):
            yield Range(number, start, min(start + BATCH, len(file)))


def _at(rows: RowFiles, file: int, number: int) -> Fault:
    """Where a row stands."""
    container = rows.files[file].container
    place = f"{container.place} {rows.files[file].places[number, 2]}"
    return Fault(file=container.path, place=place, reason="")


def _copies(rows: RowFiles, hashes: np.ndarray, repeated: np.ndarray) -> Iterator[Finding]:
    """Rows that say what another one says, and rows that only share the question or the id with one; ``repeated`` is
    the row that each repeats on images that look the same, or itself."""
    whole, asked, named = (first_equal(hashes[:, column]) for column in range(3))
    for place in np.flatnonzero(hashes[:, 0]).tolist():
        for first, level, kind, what, remedy, fix in (
            (whole, WARNING, "copy", "images and turns are those of {}", "take one of the two out", TAKEN_OUT),
            (
                repeated,
                WARNING,
                "near-duplicate",
                "its questions and answers stand at {} already, about images that look the same",
                "look at both, and take one out unless each shall count",
                "",
            ),
            (
                asked,
                NOTE,
                "answer",
                "images and questions are those of {}, the answers are not",
                "keep what is true",
                "",
            ),
            (named, NOTE, "id", "the id is that of {}", "give each row its own", ""),
        ):
            if first[place] != place:
                other = where(_at(rows, *rows.locate(int(first[place]))))
                part, number = rows.locate(place)
                found = _finding(_at(rows, part, number), level, kind, what.format(other), remedy, fix)
                yield replace(found, part=part)
                break
