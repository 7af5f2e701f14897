"""Raw records, converted once: ``SPLIT.jsonl`` holds a split's training rows, ``faults.jsonl`` what could not be used.

``rows.json`` says what was converted and how many rows came of it: only changed raw data or domain files are converted
again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mini_internvl.data import DataError, Fault
from mini_internvl.data.check import trainable
from mini_internvl.data.rows import write_rows
from mini_internvl.domains import Domain
from mini_internvl.files import read_object, write_json, write_text
from mini_internvl.inputs.messages import normalise
from mini_internvl.records import Interrupted, Sample

CONVERTED, FAULTS = "rows.json", "faults.jsonl"


def convert(
    domain: Domain, raw: Path, folder: Path, *, max_faults: float, should_stop: Callable[[], bool]
) -> dict[str, dict[str, Any]]:
    """Write the rows of the training split, and of the held-out one if there is one, into ``folder``.

    ``max_faults`` is the share of the records that may be unusable; ``should_stop`` is asked after every one.

    Returns:
        Split -> number of ``rows`` and ``faults``, ``sha256`` of the file. A held-out split may have 0 rows.

    Raises:
        DataError: the training split is empty, or too many records cannot be used; the message lists the first.
        Interrupted: stopped; the next call begins again.
    """
    files = _files(raw)
    identity = {"raw": str(raw.resolve()), "code": _code(domain.file), "files": _fingerprint(files)}
    record = folder / CONVERTED
    if record.is_file():
        known = read_object(record)
        if known["identity"] == identity:
            return dict(known["splits"])
        record.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, dict[str, Any]] = {}
    faults: list[Fault] = []
    for split in domain.splits[:2]:
        path = folder / f"{split}.jsonl"
        samples = _samples(domain, raw, split, should_stop)
        first = next(samples, None)
        rows, found = (0, []) if first is None else write_rows(itertools.chain([first], samples), path)
        splits[split] = {"rows": rows, "faults": len(found), "sha256": _hash(path) if rows else ""}
        faults += found
    lines = [{**dataclasses.asdict(fault), "file": str(fault.file)} for fault in faults]
    write_text(folder / FAULTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    _check(splits, faults, max_faults, folder)
    after = _files(raw)
    if files < after:  # images that the domain made there: not to be taken for new records
        identity["files"] = _fingerprint(after)
    write_json(record, {"identity": identity, "splits": splits})
    return splits


def _samples(domain: Domain, raw: Path, split: str, should_stop: Callable[[], bool]) -> Iterator[Sample | Fault]:
    """What the domain yields; a sample that could not be trained on, for instance without its image, is a fault."""
    for number, sample in enumerate(_converted(domain, raw, split), 1):
        if should_stop():
            raise Interrupted(f"stopped converting {split} at record {number}")
        if isinstance(sample, Sample):
            try:
                trainable(normalise(sample.messages))
            except ValueError as error:
                sample = Fault(file=raw, place=f"{split} {number}", reason=str(error))
        yield sample


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


def _files(raw: Path) -> set[str]:
    """Names, sizes and times of all raw files."""
    found = set[str]()
    for place, _, names in os.walk(raw):
        for name in names:
            stat = os.stat(os.path.join(place, name))
            found.add(f"{os.path.relpath(place, raw)}/{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n")
    return found


def _fingerprint(files: set[str]) -> str:
    digest = hashlib.sha256()
    for line in sorted(files):
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()
