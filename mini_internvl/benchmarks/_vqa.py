"""Question answering over one image: InternVL's data folder, its jsonl files, and the prompts.

InternVL keeps a benchmark in ``data/NAME`` and names images from the folder above (``data/docvqa/val/...``). Here the
file may lie in ``root/BENCHMARK``, ``root/NAME``, ``root/data/NAME`` or ``root``, and images are looked for with and
without the leading ``data/NAME/``, then by their bare name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._files import Faults, TableImage, image_paths, locate
from mini_internvl.records import Item

SENTENCE = "Answer the question using a single word or phrase."
NEW_TOKENS = 100
"""Answer limit of InternVL's script for short answers."""
VLMEVALKIT_NEW_TOKENS = 1024
"""Answer limit of VLMEvalKit for every benchmark."""
PUBLISHED = re.compile(r"(\./)?data/[^/]+/")
"""How InternVL's files begin an image's name."""


def find(root: str | Path, folders: Sequence[str], names: Sequence[str]) -> Path | None:
    """The first of the named files in the first folder below ``root`` that has one."""
    places = (Path(root) / folder / name for folder in (*folders, "") for name in names)
    return next((place for place in places if place.is_file()), None)


def need(root: str | Path, benchmark: str, folders: Sequence[str], names: Sequence[str]) -> Path:
    """As :func:`find`; the first name is the one to ask for where none is there.

    Raises:
        DataError: the folder or the file is missing.
    """
    return find(root, folders, names) or locate(root, benchmark, names[0])[0]


def check_fields(path: Path, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], name: str) -> None:
    """Refuse rows whose fields are not texts, or whose id (field ``name``) is neither text nor whole number.

    Raises:
        DataError: lists the rows.
    """
    faults = Faults(path)
    for number, row in enumerate(rows, 1):
        for field in texts:
            if not isinstance(row[field], str):
                faults.add(number, f"{field} is no text")
        if not isinstance(row[name], str | int):
            faults.add(number, f"{name} is neither text nor whole number")
    faults.check()


def gold_answers(path: Path, rows: Sequence[Mapping[str, Any]], field: str) -> list[list[str]]:
    """The gold answers of each row: a text, or a list of texts.

    Raises:
        DataError: lists the rows where they are something else.
    """
    faults = Faults(path)
    found: list[list[str]] = []
    for number, row in enumerate(rows, 1):
        golds = [row[field]] if isinstance(row[field], str) else row[field]
        if not isinstance(golds, list) or not all(isinstance(gold, str) for gold in golds):
            faults.add(number, f"{field} is neither a text nor a list of texts")
            golds = []
        found.append(golds)
    faults.check()
    return found


def unique(names: Iterable[object]) -> list[str]:
    """Names as texts; one that comes again gets a number, such as ``7#2``."""
    seen: Counter[str] = Counter()
    found = []
    for name in map(str, names):
        seen[name] += 1
        found.append(f"{name}#{seen[name]}" if seen[name] > 1 else name)
    return found


def images(path: Path, names: Sequence[str], *folders: Path) -> list[str]:
    """Where the images named by a file's rows are.

    Args:
        path: the file; its own folder is searched first.
        names: one a row.
        folders: further folders.

    Raises:
        DataError: lists the rows whose image is missing.
    """
    places = tuple(dict.fromkeys([path.parent, *folders, path.parent.parent.parent]))
    known: dict[str, str] = {}
    for name in names:
        if name not in known:
            ways = [name, PUBLISHED.sub("", name, count=1) if PUBLISHED.match(name) else name, Path(name).name]
            there = (way for way in ways if way and any((place / way).is_file() for place in places))
            known[name] = next(there, ways[1])
    return [str(place) for place in image_paths(path, [known[name] for name in names], *places)]


def short_question(question: str, *, vlmevalkit: bool) -> str:
    """The question with InternVL's instruction after a space, or as VLMEvalKit writes it, after a line break."""
    return f"{question}\n{SENTENCE}" if vlmevalkit else f"{question} {SENTENCE}"


def ask(
    name: str, image: str | TableImage, text: str, reference: Mapping[str, Any], *, max_tiles: int, max_new_tokens: int
) -> Item:
    """One item: an image, then the text."""
    return Item(
        id=name,
        messages=[{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}],
        reference=reference,
        max_tiles=max_tiles,
        max_new_tokens=max_new_tokens,
    )
