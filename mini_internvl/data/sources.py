"""What training reads: samples by number, from a file, a domain's raw folder, or drawn on the fly.

A source is opened in one pass that checks every row and remembers where it stands; afterwards a sample is read from its
file when it is asked for. Which sample a number means depends on the seed and the number alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mini_internvl import plugins, synth
from mini_internvl.data import DataError, Fault
from mini_internvl.data.check import Check, Extra
from mini_internvl.data.files import ENDINGS, RowFile
from mini_internvl.data.rows import to_sample
from mini_internvl.files import read_object
from mini_internvl.recipes import SourceRecipe
from mini_internvl.records import Sample

META = frozenset({"root", "annotation", "repeat_time", "max_dynamic_patch", "length", "data_augment"})
"""Keys of an entry of InternVL's meta JSON."""
META_BYTES = 16 << 20  # of the largest one


@dataclass(eq=False)
class Source:
    """Samples by number; numbers past the end begin again, in another order."""

    read: Callable[[int], Sample]  # the sample at a place
    count: int  # places of one pass; 0 for samples that never run out and have one order
    fingerprint: str  # of all that decides the samples: it differs when a file's content does
    warnings: Sequence[str] = ()  # what is odd in the data, a line each
    groups: np.ndarray | None = None  # (count,) places with equal numbers follow each other; ``None``: each alone
    faults: Sequence[Fault] = ()  # places that hold no sample, in order
    seed: int = 0
    _order: tuple[int, np.ndarray] | None = field(default=None, init=False)

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
        """The same samples in the order of a seed; no file is read again."""
        return replace(self, seed=seed)


def open_source(recipe: SourceRecipe, check: Extra | None = None) -> Source:
    """Open one source of a recipe, in the order of seed 0; ``check`` is a further one of samples of a file or domain.

    DataError names a missing file or folder, or lists the rows that cannot be used with their places.
    """
    if recipe.kind == "synth":
        return _synth(recipe)
    return _domain(recipe, Check(check)) if recipe.kind == "domain" else _file(recipe, Check(check))


def _synth(recipe: SourceRecipe) -> Source:
    name, seed, split = recipe.name, recipe.seed, recipe.split
    if name not in synth.KINDS:
        raise DataError(f'unknown synth kind "{name}"; known: {", ".join(synth.KINDS)}')
    if reason := synth.missing(name):
        raise DataError(f"{reason}; or take the source {name} out of the recipe")
    draw = functools.partial(synth.make, name, seed, split=split)
    return Source(draw, 0, fingerprint=f"synth-{name}-{seed}-{split}")


def _domain(recipe: SourceRecipe, checked: Check) -> Source:
    """The samples of a raw folder, held in memory."""
    domain = plugins.find("domains", recipe.name)
    folder, samples = Path(recipe.path), list[Sample]()
    digest = hashlib.blake2b(digest_size=16)
    for number, sample in enumerate(domain.convert(folder, recipe.split), 1):
        if isinstance(sample, Fault):
            checked.fault(sample)
            continue
        if recipe.independent:
            sample = replace(sample, independent=True)
        samples.append(sample)
        digest.update(pickle.dumps(sample))  # with the pixels of images that are no files
        checked.sample(sample, folder, f"sample {number} ({sample.id})")
    checked.refuse()
    if not samples:
        raise DataError(f"{recipe.path} ({recipe.split}) holds no samples")
    return Source(samples.__getitem__, len(samples), fingerprint=digest.hexdigest(), warnings=checked.warnings())


class Part(NamedTuple):
    """One file of a source, and what :func:`to_sample` is given with its rows (``name`` as their source)."""

    path: Path
    name: str = ""
    root: Path | None = None
    max_tiles: int | None = None
    repeat: float = 1  # how often a pass takes its rows; below 1 it takes the first ones only

    def rows(self, count: int) -> int:
        """Rows of a pass, of the ``count`` that the file has."""
        if not count:
            raise DataError(f"{self.path} holds no samples")
        if self.repeat > 1 and self.repeat != int(self.repeat):
            raise DataError(f"{self.name}: repeat_time is {self.repeat}; above 1 it must be a whole number")
        if int(count * self.repeat) < 1:
            raise DataError(f"{self.name}: repeat_time {self.repeat} leaves none of {count} rows")
        return int(count * self.repeat)


class _Rows:
    """The rows of several files as samples by their place, one file after the other."""

    def __init__(self, recipe: SourceRecipe, parts: Sequence[Part], checked: Check) -> None:
        format = recipe.format or ("" if recipe.kind in ("rows", "jsonl") else recipe.kind)
        self.readers, self.files = [], []
        for part in parts:
            read = functools.partial(
                to_sample,
                root=part.root,
                format=format,
                source=part.name,
                max_tiles=part.max_tiles,
                independent=recipe.independent,
            )
            self.readers.append(read)
            self.files.append(RowFile(part.path, functools.partial(checked.row, read=read, format=format)))
        checked.refuse()
        pairs = list(zip(parts, self.files, strict=True))
        self.counts = [part.rows(len(file)) for part, file in pairs]
        self.ends = np.cumsum(self.counts)
        settings = [(part.repeat, part.max_tiles, file.fingerprint) for part, file in pairs]
        content = json.dumps([settings, format, recipe.independent])
        self.fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def __call__(self, place: int) -> Sample:
        number = int(np.searchsorted(self.ends, place, side="right"))
        file = self.files[number]
        row = file.row((place - int(self.ends[number]) + self.counts[number]) % len(file))
        sample = row if isinstance(row, Fault) else self.readers[number](row)
        if isinstance(sample, Fault):
            raise DataError(f"{sample}; the file was changed while it was read")
        return sample

    def groups(self) -> np.ndarray | None:
        """Numbers of the groups of all places, where a file has groups; a row without one is a group of its own."""
        own = [file.groups() for file in self.files]
        if all(groups is None for groups in own):
            return None
        found, first = [], 0
        for file, groups, count in zip(self.files, own, self.counts, strict=True):
            groups = np.arange(len(file)) if groups is None else groups
            found.append(first + np.resize(groups, count))
            first += int(groups.max()) + 1
        return np.concatenate(found)


def _file(recipe: SourceRecipe, checked: Check) -> Source:
    """The rows of a file, of all files of a folder, or of the files that a meta JSON names."""
    rows = _Rows(recipe, list(_parts(Path(recipe.path), checked)), checked)
    count, warnings = int(rows.ends[-1]), checked.warnings()
    return Source(rows, count, fingerprint=rows.fingerprint, warnings=warnings, groups=rows.groups())


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
    if path.suffix.lower() != ".json":
        return None
    try:
        content = read_object(path, limit=META_BYTES, error=DataError)
    except DataError:  # JSON lines, a list, too large, no JSON
        return None
    entries = [isinstance(entry, dict) and isinstance(entry.get("annotation"), str) for entry in content.values()]
    return content if entries and all(entries) else None


def _named(path: Path, name: str, value: object) -> Path:
    """A path of a meta JSON: from its own folder, or as the original reads it, from the working folder."""
    if not isinstance(value, str):
        raise DataError(f"{path}, {name}: {value!r} is no path")
    for found in (path.parent / value, Path(value)):
        if found.exists():
            return found
    raise DataError(f"{path}, {name}: {value} is missing, both in {path.parent} and in the working folder")
