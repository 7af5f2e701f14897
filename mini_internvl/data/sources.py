"""What training reads: samples by number, from a file, a domain's raw folder, or drawn on the fly.

A source of files is opened through their indexes (``index``): every row is checked and measured once, and afterwards a
sample is read from its file when it is asked for. The samples of a domain are held in memory. Which sample a number
means depends on the seed and the number alone; a row that cannot be used keeps its place and gives its Fault.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mini_internvl import plugins, synth
from mini_internvl.data import DataError, Fault, where
from mini_internvl.data.check import KEPT_FAULTS, Check, Measure
from mini_internvl.data.index import Progress, open_index
from mini_internvl.data.parts import Part, find_parts, format_key
from mini_internvl.data.rows import to_sample
from mini_internvl.recipes import SourceRecipe
from mini_internvl.records import Sample, Size

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens, supervised tokens and tiles of samples


@dataclass(frozen=True, eq=False)
class Sizes:
    """Sizes by place; they are gathered when they are asked for, from arrays that may lie in files."""

    parts: Sequence[np.ndarray]  # of each file (rows, 3)
    counts: Sequence[int]  # places that belong to each: its rows in turn, over and over

    def at(self, places: np.ndarray) -> np.ndarray:
        """(places, 3) tokens, supervised tokens, tiles."""
        ends = np.cumsum(self.counts)
        files = np.searchsorted(ends, places, side="right")
        found = np.empty((len(places), 3), np.int32)
        for number in np.unique(files):
            own = files == number
            rows = places[own] - (ends[number] - self.counts[number])
            found[own] = self.parts[number][rows % len(self.parts[number])]
        return found

    @property
    def columns(self) -> Columns:
        """All of them."""
        tokens, supervised, tiles = self.at(np.arange(sum(self.counts))).T
        return tokens, supervised, tiles


@dataclass(eq=False)
class Source:
    """Samples by number; numbers past the end begin again, in another order."""

    read: Callable[[int], Sample | Fault]  # the sample at a place
    count: int  # places of one pass; 0 for samples that never run out and have one order
    fingerprint: str  # of all that decides the samples: it differs when a file's content does
    warnings: Sequence[str] = ()  # what is odd in the data, a line each
    groups: np.ndarray | None = None  # (count,) places with equal numbers follow each other; ``None``: each alone
    faults: Sequence[Fault] = ()  # rows that cannot be used, each once, in order
    sizes: Sizes | None = None  # by place, 0 where there is a fault; ``None`` where nothing was measured
    measure: Measure | None = None  # of samples that have no sizes yet
    seed: int = 0
    _order: tuple[int, np.ndarray] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample | Fault:
        return self.read(int(self._places(np.array([index]))[0]))

    def sizes_at(self, indices: np.ndarray) -> Columns:
        """Tokens, supervised tokens and tiles of samples by their numbers; 0 of one that cannot be used.

        ValueError where nothing measures them. Samples that are drawn are drawn for it.
        """
        places = self._places(np.asarray(indices))
        if self.sizes is not None:
            found = self.sizes.at(places)
        elif self.measure is not None:
            found = np.array([_size(self.read(place), self.measure) for place in places.tolist()]).reshape(-1, 3)
        else:
            raise ValueError("the source was opened without a measure, so its sizes are not known")
        return found[:, 0], found[:, 1], found[:, 2]

    def refuse(self) -> None:
        """Raise DataError with the faults listed, if there is one."""
        if self.faults:
            raise DataError.of(self.faults[:KEPT_FAULTS], "mend the rows or take them out", count=len(self.faults))

    def _places(self, indices: np.ndarray) -> np.ndarray:
        """Where the samples of these numbers stand."""
        if not self.count:
            return indices
        turns, within = np.divmod(indices, self.count)
        places = np.empty(len(indices), np.int64)
        in_turn = np.argsort(turns, kind="stable")
        for own in np.split(in_turn, np.flatnonzero(np.diff(turns[in_turn])) + 1) if len(indices) else []:
            turn = int(turns[own[0]])
            if self._order is None or self._order[0] != turn:
                self._order = (turn, self._shuffled(np.random.default_rng((self.seed, turn))))
            places[own] = self._order[1][within[own]]
        return places

    def _shuffled(self, random: np.random.Generator) -> np.ndarray:
        if self.groups is None:
            return random.permutation(self.count)
        first = random.random(self.groups.max() + 1)[self.groups]
        return np.lexsort((random.random(self.count), first))

    def with_seed(self, seed: int) -> Source:
        """The same samples in the order of a seed; no file is read again."""
        return replace(self, seed=seed)


def _size(sample: Sample | Fault, measure: Measure) -> tuple[int, int, int]:
    try:
        size = None if isinstance(sample, Fault) else measure(sample)
    except ValueError:
        size = None
    return (size.tokens, size.supervised, size.tiles) if size else (0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How the rows of a source are looked at; see :func:`open_source`."""

    measure: Measure | None
    key: str
    workers: int
    on_progress: Progress | None
    checked: Check


def open_source(
    recipe: SourceRecipe,
    measure: Measure | None = None,
    *,
    key: str = "",
    workers: int = 0,
    on_progress: Progress | None = None,
    strict: bool = True,
) -> Source:
    """Open one source of a recipe, in the order of seed 0.

    ``measure`` gives a sample's size, or ``None`` if it only checks it; ``key`` tells all that decides what it gives
    (see :func:`index.open_index`, as for ``workers`` and ``on_progress``). DataError names a missing file or folder,
    and if ``strict`` lists the rows that cannot be used with their places.
    """
    opening = Opening(measure=measure, key=key, workers=workers, on_progress=on_progress, checked=Check(measure))
    if recipe.kind == "synth":
        return _synth(recipe, measure)
    if recipe.kind == "pictures":
        from mini_internvl.data.pictures import picture_folder

        return picture_folder(Path(recipe.path))
    source = (_domain if recipe.kind == "domain" else _file)(recipe, opening)
    if strict:
        source.refuse()
    if not source.count:
        raise DataError(f"{recipe.path}{f' ({recipe.split})' if recipe.kind == 'domain' else ''} holds no samples")
    return source


def _synth(recipe: SourceRecipe, measure: Measure | None) -> Source:
    name, seed, split = recipe.name, recipe.seed, recipe.split
    if name not in synth.KINDS:
        raise DataError(f'unknown synth kind "{name}"; known: {", ".join(synth.KINDS)}')
    if reason := synth.missing(name):
        raise DataError(f"{reason}; or take the source {name} out of the recipe")
    draw = functools.partial(synth.make, name, seed, split=split)
    return Source(draw, 0, fingerprint=f"synth-{name}-{seed}-{split}", measure=measure)


def _domain(recipe: SourceRecipe, opening: Opening) -> Source:
    """The samples of a raw folder, held in memory. A fault that its domain tells has no place among them."""
    domain, checked = plugins.find("domains", recipe.name), opening.checked
    folder, samples = Path(recipe.path), list[Sample | Fault]()
    sizes, faults = list[tuple[int, int, int]](), list[Fault]()
    digest = hashlib.blake2b(digest_size=16)
    for number, sample in enumerate(domain.convert(folder, recipe.split), 1):
        if isinstance(sample, Fault):
            faults.append(sample)
            continue
        if recipe.independent:
            sample = replace(sample, independent=True)
        digest.update(pickle.dumps(sample))  # with the pixels of images that are no files
        found = checked.sample(sample, folder, f"sample {number} ({sample.id})")
        if isinstance(found, Size):
            samples.append(sample)
            sizes.append((found.tokens, found.supervised, found.tiles))
        else:
            samples.append(found)
            faults.append(found)
            sizes.append((0, 0, 0))
    known = Sizes([np.array(sizes, np.int32).reshape(-1, 3)], [len(samples)])
    return Source(
        samples.__getitem__,
        len(samples),
        fingerprint=digest.hexdigest(),
        warnings=checked.warnings(),
        faults=faults,
        sizes=known if checked.measured or not checked.samples else None,
    )


class RowFiles:
    """The rows of several files as samples by their place, one file after the other."""

    def __init__(self, recipe: SourceRecipe, parts: Sequence[Part], opening: Opening) -> None:
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
            settings = [str(part.root and part.root.resolve()), part.max_tiles, recipe.independent, format_key(format)]
            key = json.dumps([opening.key, *settings])
            self.readers.append(read)
            self.files.append(
                open_index(
                    part.path,
                    read=read,
                    measure=opening.measure,
                    key=key if opening.key or opening.measure is None else "",
                    format=format,
                    workers=opening.workers,
                    on_progress=opening.on_progress,
                )
            )
        self.parts, self.format, self.independent = parts, format, recipe.independent

    def settle(self) -> None:
        """Settle how often a pass takes the rows of each file; DataError where it cannot be."""
        pairs = list(zip(self.parts, self.files, strict=True))
        self.counts = [part.rows(len(file)) for part, file in pairs]
        self.ends = np.cumsum(self.counts)
        settings = [(part.repeat, part.max_tiles, file.fingerprint) for part, file in pairs]
        content = json.dumps([settings, self.format, self.independent])
        self.fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def __call__(self, place: int) -> Sample | Fault:
        number = int(np.searchsorted(self.ends, place, side="right"))
        return self.sample(number, (place - int(self.ends[number]) + self.counts[number]) % len(self.files[number]))

    def locate(self, number: int) -> tuple[int, int]:
        """The numbers of file and row of the ``number``-th of all rows, each counted once."""
        ends = np.cumsum([len(file) for file in self.files])
        file = int(np.searchsorted(ends, number, side="right"))
        return file, number - int(ends[file]) + len(self.files[file])

    def sample(self, number: int, index: int) -> Sample | Fault:
        """The sample of a row by the numbers of its file and its row."""
        row = self.files[number].row(index)
        if isinstance(row, Fault):
            return row
        sample = self.readers[number](row)
        if isinstance(sample, Fault):
            raise DataError(f"{sample}; the file was changed while it was read")
        return sample

    def faults(self) -> list[Fault]:
        """Every row that a pass takes and cannot use, once."""
        pairs = zip(self.files, self.counts, strict=True)
        return [fault for file, count in pairs for fault in file.faults[: int(np.searchsorted(file.faulty, count))]]

    def note(self, checked: Check) -> None:
        """Tell what is odd in the files."""
        for file in self.files:
            checked.shortened += file.shortened
            for what, (place, count) in file.noted.items():
                checked.add(what, where(Fault(file=file.container.path, place=place, reason=what)), count)

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


def open_rows(recipe: SourceRecipe, opening: Opening, *more: str) -> RowFiles:
    """The rows of a file, of all files of a folder, or of the files that a meta JSON names, through their indexes;
    ``more`` are further paths."""
    parts = [part for path in (recipe.path, *more) for part in find_parts(Path(path), opening.checked)]
    rows = RowFiles(recipe, parts, opening)
    rows.settle()
    return rows


def _file(recipe: SourceRecipe, opening: Opening) -> Source:
    rows = open_rows(recipe, opening)
    rows.note(opening.checked)
    sizes = Sizes([file.sizes for file in rows.files], rows.counts)
    return Source(
        rows,
        int(rows.ends[-1]),
        fingerprint=rows.fingerprint,
        warnings=opening.checked.warnings(),
        groups=rows.groups(),
        faults=rows.faults(),
        sizes=sizes if all(file.measured for file in rows.files) else None,
    )
