"""A clean copy of rows: what was found wrong is mended where that takes no guessing, and left out where it does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mini_internvl.data import DataError, Fault
from mini_internvl.data.inspection import Finding
from mini_internvl.data.oddities import TAKEN_OUT, mended
from mini_internvl.data.sources import RowFiles
from mini_internvl.files import write_bytes
from mini_internvl.records import Sample

Key = tuple[int, str]  # the number of the file, since a source may name a file twice, and the place in it


def by_row(findings: Iterable[Finding]) -> Mapping[Key, list[Finding]]:
    """Those findings of each row that a clean copy does something about."""
    found: dict[Key, list[Finding]] = {}
    for finding in findings:
        if finding.fix:
            found.setdefault((finding.part, finding.place), []).append(finding)
    return found


def cleaned(rows: RowFiles, findings: Iterable[Finding]) -> Iterator[Sample | Fault]:
    """Every row in order: as it is, mended, or as the Fault for which it is left out."""
    wrong = by_row(findings)
    for number, file in enumerate(rows.files):
        for row in range(len(file)):
            place = f"{file.container.place} {file.places[row, 2]}"
            own = wrong.get((number, place), [])
            out = next((finding for finding in own if finding.fix == TAKEN_OUT), None)
            if out:
                yield Fault(file=out.file, place=out.place, reason=out.message)
                continue
            sample = rows.sample(number, row)
            yield mended(sample) if own and isinstance(sample, Sample) else sample


def check_apart(out: Path, sources: Iterable[Path]) -> None:
    """DataError where a copy would replace something, or stand in a folder that it is made from."""
    if out.suffix.lower() != ".jsonl":
        raise DataError(f"{out}: a clean copy is .jsonl; minivl data convert makes another kind of it")
    if out.exists():
        raise DataError(f"{out} exists already; give a new file")
    for source in sources:
        if source.is_dir() and out.resolve().parent == source.resolve():
            raise DataError(f"{out} would lie among the files of {source}; give another folder")


def write_changes(findings: Iterable[Finding], path: Path) -> tuple[int, int]:
    """Write a line for each row that a clean copy mends or leaves out; returns how many it mends and leaves out."""
    lines, done = list[dict[str, Any]](), {"mended": 0, TAKEN_OUT: 0}
    for own in by_row(findings).values():
        out = [finding for finding in own if finding.fix == TAKEN_OUT]
        done[TAKEN_OUT if out else "mended"] += 1
        for finding in out[:1] or own:
            lines.append(
                {"file": str(finding.file), "place": finding.place, "found": finding.message, "done": finding.fix}
            )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_bytes(path, text.encode("utf-8", "replace"))
    return done["mended"], done[TAKEN_OUT]
