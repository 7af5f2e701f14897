"""Raw records, converted once: ``SPLIT.jsonl`` holds a split's training rows, ``faults.jsonl`` what could not be used.

``rows.json`` says what was converted and how many rows came of it: only changed raw data or domain files are converted
again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._files import chosen
from mini_internvl.data import DataError, Fault, draft
from mini_internvl.data.containers import IMAGE_ENDINGS
from mini_internvl.data.convert import Batch, FromDomain, Settings, batch_rows, finished, write, writer_of
from mini_internvl.data.draft import State
from mini_internvl.data.writers import JsonLinesWriter, Writer
from mini_internvl.domains import Domain
from mini_internvl.files import read_object, write_json, write_text
from mini_internvl.records import Interrupted, Sample

CONVERTED, FAULTS = "rows.json", "faults.jsonl"
RECORDS, HEAVY = 256, 16  # of a piece of work at most, and of those whose images are no files


def convert(
    domain: Domain,
    raw: Path,
    folder: Path,
    *,
    max_faults: float,
    should_stop: Callable[[], bool],
    workers: int = 0,
    fixed: Path | None = None,
    on_note: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[int], None] = lambda records: None,
) -> dict[str, dict[str, Any]]:
    """Write the rows of the training split, and of the held-out one if there is one, into ``folder``.

    ``max_faults`` is the share of the records that may be unusable; ``should_stop`` is asked after every one;
    ``on_note`` gets a line where an earlier call was ended. The bytes do not depend on ``workers``. ``fixed`` is the
    folder of a run that has begun to train on the rows that are there: others are refused before anything is changed.

    Returns:
        Split -> number of ``rows`` and ``faults``, ``sha256`` of the file. A held-out split may have 0 rows.

    Raises:
        DataError: the training split is empty, or too many records cannot be used; the message lists the first. Or the
            rows are ``fixed`` and would be others.
        Interrupted: stopped; the next call goes on.
    """
    source = Raw(domain=domain, folder=raw)
    identity = {"raw": str(raw.resolve()), "code": _code(domain.file), "files": source.files}
    record = folder / CONVERTED
    if record.is_file():
        known = read_object(record)
        if known["identity"] == identity:
            return dict(known["splits"])
        if fixed is not None:
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as other:
                again = convert(
                    domain, raw, Path(other), max_faults=max_faults, should_stop=should_stop, workers=workers,
                    on_progress=on_progress,
                )  # fmt: skip
            _need_same(known["splits"], again, raw, fixed)
        record.unlink()
    splits: dict[str, dict[str, Any]] = {}
    faults: list[Fault] = []
    settings = Settings(
        skip=True, kept=sys.maxsize, replace=True, workers=workers, on_note=on_note, on_progress=on_progress
    )
    for split in domain.splits[:2]:
        path = folder / f"{split}.jsonl"
        done = source.write(split, JsonLinesWriter(out=path, inside=False), settings, should_stop)
        splits[split] = {"rows": done.rows, "faults": done.faulty, "sha256": _hash(path) if done.rows else ""}
        faults += done.faults
    lines = [{**dataclasses.asdict(fault), "file": str(fault.file)} for fault in faults]
    write_text(folder / FAULTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    _check(splits, faults, max_faults, folder)
    after, before, _ = _fingerprints(raw, since=source.since)
    if before == source.files:  # with files that the domain made there: not to be taken for new records
        identity["files"] = after
    write_json(record, {"identity": identity, "splits": splits})
    for split in splits:
        draft.forget(folder / f"{split}.jsonl")
    return splits


def _need_same(known: Mapping[str, Any], again: Mapping[str, Any], raw: Path, output: Path) -> None:
    for split, found in again.items():
        if found["sha256"] != known[split]["sha256"]:
            raise DataError(changed_data(f"{raw} ({split})", output))


def changed_data(what: str, output: Path) -> str:
    """What is said of data that would change beneath a training that has begun."""
    return (
        f"{what} is not the data that the run in {output} began with; put it back, go on with what it is now "
        "(--extend), or give another folder with --output"
    )


def convert_split(domain: Domain, raw: Path, split: str, out: Path, inside: bool | None, settings: Settings) -> State:
    """Write one split to a file whose ending tells its kind, or to shards of that kind, as ``data.convert`` does."""
    chosen("split", split, domain.splits)
    if not raw.is_dir():
        raise DataError(f"{raw} is no folder; give that of the raw records")
    source = Raw(domain=domain, folder=raw)
    state = source.write(split, writer_of(out, inside), settings, lambda: False)
    return finished(state, out, f"{raw} ({split})")


class Raw:
    """The raw records of a domain, and what tells their files as they were when the work began."""

    def __init__(self, *, domain: Domain, folder: Path) -> None:
        self.domain, self.folder, now = domain, folder, time.time_ns()
        self.files, _, newest = _fingerprints(folder)
        self.since = min(newest + 1, now)  # what the domain makes comes then; a raw file may be dated ahead

    def write(self, split: str, writer: Writer, settings: Settings, should_stop: Callable[[], bool]) -> State:
        """Write a split, or go on with it."""
        work = FromDomain(raw=self.folder, split=split, writer=writer)
        key = {
            "source": f"{self.folder.resolve()} {split} {self._known_as(writer.out)}",
            "domain": _code(self.domain.file),
            "images": str(writer.inside),
        }
        records = _records(self.domain, self.folder, split, should_stop)
        return write(_batches(records, batch_rows(writer)), work, writer, key, settings)

    def _known_as(self, out: Path) -> str:
        """What tells the files, as the journal of a file that was begun has it, where they are still those.

        Images that came since, which the domain made, change nothing, unless a fault may have come of their absence.
        """
        *_, known, since = draft.begun(out).get("source", " 0").split(" ")
        same = known == self.files
        if known and not same and not draft.faulty(out):
            _, before, _ = _fingerprints(self.folder, since=int(since), endings=IMAGE_ENDINGS)
            same = before == known
        return f"{known} {since}" if same else f"{self.files} {self.since}"


def _batches(records: Iterator[Sample | Fault], most: int) -> Iterator[Batch]:
    """Records as batches; few where their images are no files, which are large."""
    batch, heavy, first = list[Sample | Fault](), 0, 0
    for record in records:
        batch.append(record)
        heavy += isinstance(record, Sample) and _holds_images(record)
        if len(batch) == min(most, RECORDS) or heavy == HEAVY:
            yield Batch(0, first, batch)
            first += len(batch)
            batch, heavy = [], 0
    if batch:
        yield Batch(0, first, batch)


def _holds_images(sample: Sample) -> bool:
    """Whether an image of the sample is no path."""
    for message in sample.messages:
        if not isinstance(message["content"], str):
            for part in message["content"]:
                if "image" in part and not isinstance(part["image"], (str, os.PathLike)):
                    return True
    return False


def _records(domain: Domain, raw: Path, split: str, should_stop: Callable[[], bool]) -> Iterator[Sample | Fault]:
    """What the domain yields."""
    for number, record in enumerate(_converted(domain, raw, split), 1):
        if should_stop():
            raise Interrupted(f"stopped converting {split} at record {number}")
        yield record


def _converted(domain: Domain, raw: Path, split: str) -> Iterator[Sample | Fault]:
    """What ``convert`` yields; an error of its code names the domain's file."""
    try:
        yield from domain.convert(raw, split)
    except (LookupError, AttributeError, TypeError) as error:
        raise DataError(
            f"{domain.file}: convert failed in the split {split} of {raw} ({type(error).__name__}: {error}); "
            "yield a Fault for a record that cannot be used"
        ) from error


def _check(splits: Mapping[str, Mapping[str, int]], faults: list[Fault], most: float, folder: Path) -> None:
    """Refuse an empty training split, and more faults than allowed."""
    records = sum(found["rows"] + found["faults"] for found in splits.values())
    if len(faults) > most * records:
        hint = f"{len(faults)} of {records} records cannot be used, more than --max-faults {most:g} allows"
        raise DataError.of(faults, f"{hint}; {folder / FAULTS} lists them")
    train = next(iter(splits))
    if not splits[train]["rows"]:
        raise DataError(f"the raw data hold no records of the split {train}; is --data the right folder?")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _code(file: Path) -> str:
    """Hash of a domain's file and of all that the package's own domains and benchmarks share."""
    package = Path(__file__).parent
    shared = sorted((*package.rglob("*.py"), *(package.parent / "benchmarks").glob("*.py")))
    return hashlib.sha256("".join(map(_hash, (file, *shared))).encode()).hexdigest()


def _fingerprints(raw: Path, *, since: int | None = None, endings: Sequence[str] = ()) -> tuple[str, str, int]:
    """Sums of hashes of the names, sizes and times of all raw files; and of those without what came ``since``, in
    nanoseconds, where ``endings`` names its kind or is empty; and when the newest came."""
    sums, counts, newest = [0, 0], [0, 0], 0
    for place, _, names in os.walk(raw):
        below = os.path.relpath(place, raw)
        for name in names:
            stat = os.stat(os.path.join(place, name))
            line = f"{below}/{name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape")
            number = int.from_bytes(hashlib.blake2b(line, digest_size=16).digest(), "big")
            newest = max(newest, stat.st_mtime_ns)
            came = since is not None and stat.st_mtime_ns >= since
            for which in (0,) if came and (not endings or name.rpartition(".")[2].lower() in endings) else (0, 1):
                sums[which] += number
                counts[which] += 1
    whole, before = (f"{count}-{total % 2**128:032x}" for count, total in zip(counts, sums, strict=True))
    return whole, before, newest
