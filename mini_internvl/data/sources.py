"""What training reads: samples by number, from a file, a domain's raw folder, or drawn on the fly.

A source is opened in one pass that checks every row and remembers where it stands; afterwards a sample is read from its
file when it is asked for. Which sample a number means depends on the seed and the number alone.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mini_internvl import plugins, synth
from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.check import Check, Extra
from mini_internvl.data.files import ENDINGS, RowFile
from mini_internvl.data.rows import to_sample
from mini_internvl.files import read_json
from mini_internvl.recipes import SourceRecipe
from mini_internvl.records import Sample

META = frozenset({"root", "annotation", "repeat_time", "max_dynamic_patch", "length", "data_augment"})
"""Keys of an entry of InternVL's meta JSON."""
META_BYTES = 16 << 20
"""Bytes of the largest meta JSON."""


class Source:
    """Samples by number; numbers past the end begin again, in another order.

    Args:
        read: the sample at a place.
        count: places of one pass; 0 for samples that never run out and have one order.
        seed: of the orders.
        fingerprint: of all that decides the samples: it differs when a file's content does.
        warnings: what is odd in the data, a line each.
        groups: (count,) places with equal numbers are read one after the other; ``None`` where every place is alone.
    """

    def __init__(
        self,
        read: Callable[[int], Sample],
        count: int,
        seed: int,
        *,
        fingerprint: str,
        warnings: Sequence[str] = (),
        groups: np.ndarray | None = None,
    ) -> None:
        self.read, self.count, self.seed, self.groups = read, count, seed, groups
        self.fingerprint, self.warnings = fingerprint, warnings
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not self.count:
            return self.read(index)
        turn, place = divmod(index, self.count)
        if self._order is None or self._order[0] != turn:
            self._order = (turn, self._shuffled(np.random.default_rng((self.seed, turn))))
        return self.read(int(self._order[1][place]))

    def _shuffled(self, random: np.random.Generator) -> np.ndarray:
        if self.groups is None:
            return random.permutation(self.count)
        first = random.random(self.groups.max() + 1)[self.groups]
        return np.lexsort((random.random(self.count), first))

    def with_seed(self, seed: int) -> Source:
        """The same samples in the order of another seed; no file is read again."""
        other = copy.copy(self)
        other.seed, other._order = seed, None
        return other


def open_source(recipe: SourceRecipe, seed: int, check: Extra | None = None) -> Source:
    """Open one source of a recipe.

    Args:
        recipe: the source.
        seed: of its order.
        check: a further check of every sample of a file or domain; it raises ValueError.

    Raises:
        DataError: the file or folder is missing, or rows cannot be used (all are listed with their places).
    """
    if recipe.kind == "synth":
        return _synth(recipe, seed)
    return _domain(recipe, seed, check) if recipe.kind == "domain" else _file(recipe, seed, check)


def _synth(recipe: SourceRecipe, seed: int) -> Source:
    name, first, split = recipe.name, recipe.seed, recipe.split
    if name not in synth.KINDS:
        raise DataError(f'unknown synth kind "{name}"; known: {", ".join(synth.KINDS)}')
    if reason := synth.missing(name):
        raise DataError(f"{reason}; or take the source {name} out of the recipe")
    draw = functools.partial(_drawn, name, first, split)
    return Source(draw, 0, seed, fingerprint=f"synth-{name}-{first}-{split}")


def _drawn(kind: str, seed: int, split: str, index: int) -> Sample:
    return synth.make(kind, seed, index, split)


def _domain(recipe: SourceRecipe, seed: int, check: Extra | None) -> Source:
    """The samples of a raw folder, held in memory."""
    domain = plugins.find("domains", recipe.name)
    folder, samples, checked = Path(recipe.path), list[Sample](), Check(check)
    for number, sample in enumerate(domain.convert(folder, recipe.split), 1):
        if isinstance(sample, Fault):
            checked.fault(sample)
        else:
            samples.append(_stated(sample, recipe))
            checked.sample(samples[-1], folder, f"sample {number} ({sample.id})")
    checked.refuse()
    if not samples:
        raise DataError(f"{recipe.path} ({recipe.split}) holds no samples")
    digest = _hash(b"".join(map(pickle.dumps, samples)))  # with the pixels of images that are no files
    return Source(samples.__getitem__, len(samples), seed, fingerprint=digest, warnings=checked.warnings())


def _stated(sample: Sample, recipe: SourceRecipe) -> Sample:
    return dataclasses.replace(sample, independent=True) if recipe.independent else sample


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a source, and how it is read."""

    path: Path
    """The file of rows."""
    root: Path | None = None
    """What image paths begin from; ``None`` is the file's folder."""
    name: str = ""
    """The samples' source where a row names none; "" is the file's name."""
    repeat: float = 1
    """How often a pass takes its rows; below 1 it takes the first ones only."""
    max_tiles: int | None = None
    """Tile limit of samples that have none of their own."""

    def taken(self, rows: int) -> int:
        """Rows of a pass, of those that the file has."""
        if not rows:
            raise DataError(f"{self.path} holds no samples")
        if self.repeat > 1 and self.repeat != int(self.repeat):
            raise DataError(f"{self.name}: repeat_time is {self.repeat}; above 1 it must be a whole number")
        if int(rows * self.repeat) < 1:
            raise DataError(f"{self.name}: repeat_time {self.repeat} leaves none of {rows} rows")
        return int(rows * self.repeat)


class _Rows:
    """The rows of several files as samples by their place, one file after the other."""

    def __init__(self, recipe: SourceRecipe, parts: Sequence[Part], checked: Check) -> None:
        self.recipe, self.parts = recipe, parts
        self.format = recipe.format or ("" if recipe.kind in ("rows", "jsonl") else recipe.kind)
        self.files = []
        for part in parts:
            visit = functools.partial(checked.row, read=functools.partial(self.sample, part), format=self.format)
            self.files.append(RowFile(part.path, visit))
        checked.refuse()
        self.taken = [part.taken(len(file)) for part, file in zip(parts, self.files, strict=True)]
        self.ends = np.cumsum(self.taken)

    def sample(self, part: Part, row: Row) -> Sample | Fault:
        """One row as its source wants it."""
        read = to_sample(row, root=part.root, format=self.format, source=part.name)
        if isinstance(read, Fault):
            return read
        if part.max_tiles is not None and read.max_tiles is None:
            read = dataclasses.replace(read, max_tiles=part.max_tiles)
        return _stated(read, self.recipe)

    def __call__(self, place: int) -> Sample:
        number = int(np.searchsorted(self.ends, place, side="right"))
        file = self.files[number]
        row = file.row((place - int(self.ends[number]) + self.taken[number]) % len(file))
        found = row if isinstance(row, Fault) else self.sample(self.parts[number], row)
        if isinstance(found, Fault):
            raise DataError(f"{found}; the file was changed while it was read")
        return found

    def groups(self) -> np.ndarray | None:
        """Numbers of the groups of all places, where a file has groups; a row without one is a group of its own."""
        own = [file.groups() for file in self.files]
        if all(groups is None for groups in own):
            return None
        found, first = [], 0
        for file, groups, count in zip(self.files, own, self.taken, strict=True):
            groups = np.arange(len(file)) if groups is None else groups
            found.append(first + np.resize(groups, count))
            first += int(groups.max()) + 1
        return np.concatenate(found)


def _file(recipe: SourceRecipe, seed: int, check: Extra | None) -> Source:
    """The rows of a file, of all files of a folder, or of the files that a meta JSON names."""
    checked = Check(check)
    rows = _Rows(recipe, list(_parts(Path(recipe.path), checked)), checked)
    settings = [
        (part.repeat, part.max_tiles, file.fingerprint) for part, file in zip(rows.parts, rows.files, strict=True)
    ]
    digest = _hash(json.dumps([settings, rows.format, recipe.independent]).encode())
    return Source(rows, int(rows.ends[-1]), seed, fingerprint=digest, warnings=checked.warnings(), groups=rows.groups())


def _parts(path: Path, checked: Check) -> Iterator[Part]:
    """The files that a path means."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        if not found:
            raise DataError(f"{path} holds no file of rows ({', '.join(ENDINGS)})")
        yield from (Part(path=file) for file in found)
        return
    meta = _meta(path)
    if meta is None:
        yield Part(path=path)
        return
    for name, entry in meta.items():
        if unread := entry.keys() - META:
            checked.note(f"{', '.join(sorted(unread))} is not read", f"{path}, {name}")
        if entry.get("data_augment"):
            checked.note("data_augment is not read; images are taken as they are", f"{path}, {name}")
        repeat, tiles = entry.get("repeat_time", 1), entry.get("max_dynamic_patch")
        if isinstance(repeat, bool) or not isinstance(repeat, int | float) or not 0 < repeat < 1e6:
            raise DataError(f"{path}, {name}: repeat_time is {repeat!r}; it must be a number above 0")
        if tiles is not None and (type(tiles) is not int or tiles < 1):
            raise DataError(f"{path}, {name}: max_dynamic_patch is {tiles!r}; it must be a whole number from 1")
        annotation = _named(path, name, entry["annotation"])
        root = _named(path, name, entry["root"]) if entry.get("root") else None
        yield Part(path=annotation, root=root, name=name, repeat=repeat, max_tiles=tiles)


def _meta(path: Path) -> Mapping[str, Mapping[str, Any]] | None:
    """InternVL's meta JSON, or ``None`` if the file is something else."""
    if path.suffix.lower() != ".json" or not path.is_file() or path.stat().st_size > META_BYTES:
        return None
    try:
        content = read_json(path, error=DataError)
    except DataError:  # JSON lines, or no JSON
        return None
    if not isinstance(content, dict) or not content:
        return None
    entries = [isinstance(entry, dict) and isinstance(entry.get("annotation"), str) for entry in content.values()]
    return content if all(entries) else None


def _named(path: Path, name: str, value: object) -> Path:
    """A path of a meta JSON: from its own folder, or as the original reads it, from the working folder."""
    if not isinstance(value, str):
        raise DataError(f"{path}, {name}: {value!r} is no path")
    for found in (path.parent / value, Path(value)):
        if found.exists():
            return found
    raise DataError(f"{path}, {name}: {value} is missing, both in {path.parent} and in the working folder")
