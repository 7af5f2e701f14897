"""Raw folders that a domain builds itself, row by row: an interrupted build goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.data import Row
from mini_internvl.data.files import scan
from mini_internvl.files import write_text

Files = Callable[[Mapping[str, Any]], Sequence[str]]  # images of a row, as paths from its folder


def check_same(path: Path, settings: Mapping[str, Any]) -> None:
    """Keep the settings of a build in ``path``, or compare them with those kept; ValueError names the first other."""
    if not path.exists():
        write_text(path, json.dumps(settings, indent=1))
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if kept.get(name) != value:
            raise ValueError(
                f"{path.parent} was built with {name} {kept.get(name)}, not {value}; delete it or use another folder"
            )


def build_rows(
    path: Path,
    wanted: Sequence[str],
    make: Callable[[str], Mapping[str, Any]],
    files: Files,
    progress: Callable[[int], None],
) -> Path:
    """Write the rows of the ``wanted`` ids, in order; returns ``path``, which appears when all are there.

    Until then finished rows wait in ``NAME.part.jsonl``. ``make`` writes a row's images and returns the row, with its
    ``id``; a row of an earlier call whose images are there is not made again. ``progress`` is called with the number of
    rows that are there.
    """
    for draft in path.parent.glob("frames/*/.*.part"):  # of a build that was killed
        draft.unlink()
    part = path.with_name(f"{path.stem}.part.jsonl")
    done = {**_finished(path, files), **_finished(part, files)}
    if done:
        progress(sum(name in done for name in wanted))
    write_text(part, "".join(map(_line, done.values())), flush=False)
    with part.open("a", encoding="utf-8") as file:
        for number, name in enumerate(wanted, 1):
            if name not in done:
                done[name] = make(name)
                file.write(_line(done[name]))
                file.flush()
                progress(number)
    write_text(path, "".join(_line(done[name]) for name in wanted))
    part.unlink()
    return path


def _finished(path: Path, files: Files) -> dict[str, Mapping[str, Any]]:
    """Rows of an earlier run whose images are there, by id; a line that cannot be read, torn by a kill, is left out."""
    rows = (row.raw for row in scan(path) if isinstance(row, Row)) if path.exists() else ()
    return {row["id"]: row for row in rows if all((path.parent / name).is_file() for name in files(row))}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"
