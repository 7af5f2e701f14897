"""Data of one's own as a domain, without a file: found at a path, divided by pictures, scored by the shape of answers.

``build`` reads whatever lies at the path and writes training rows, split by split, into the run's raw folder::

    train.jsonl  validation.jsonl  test.jsonl
    images/ crops/       images that were inside the data, and crops, where there are any
    crops.json           where crops lie in their pictures (``benchmarks/_joined.py``)
    faults.jsonl         what could not be used
    made.json            what was found, written last

The same path, seed and settings give the same files; they are made once. The benchmark ``own`` scores them.
"""

from __future__ import annotations

import dataclasses
import filecmp
import functools
import hashlib
import json
import random
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mini_internvl import plugins
from mini_internvl.benchmarks import own
from mini_internvl.benchmarks._joined import FILE as CROPS
from mini_internvl.data import DataError, Fault, place_of
from mini_internvl.data.check import Check, trainable
from mini_internvl.data.files import scan
from mini_internvl.data.parts import find_parts
from mini_internvl.data.rows import read_rows, row_line
from mini_internvl.domains import AdaptRecipe, Domain, DomainBenchmark
from mini_internvl.domains._own.reading import Found, find
from mini_internvl.domains._own.splits import SPLITS, are_named, divide
from mini_internvl.files import new_file, read_object, write_json, write_text
from mini_internvl.inputs.hashes import ImageHashes
from mini_internvl.inputs.images import image_dimensions
from mini_internvl.inputs.messages import normalise, question
from mini_internvl.inputs.questions import asked as asked_of
from mini_internvl.metrics import shapes
from mini_internvl.records import Sample

RECIPE = AdaptRecipe(epochs=3.0)  # own data are smaller than the paper's domains
MADE, FAULTS = "made.json", "faults.jsonl"
FEW_ROWS, FEW_QUESTIONS = 30, 20  # training rows and test questions below which a warning is given
KINDS_SHOWN, KIND_WIDTH = 12, 70  # kinds of question and sources that are listed, and the longest print of a kind
EVERY = 50  # rows after which the first pass tells that it goes on
DISTINCT = 1000  # different training answers that are counted
TEXT = "text "  # how the key of a row without pictures begins


def own_domain(path: Path) -> Domain:
    """The domain of the data at a path; nothing is read yet."""
    place = path.resolve()
    name = (place.stem if place.is_file() else place.name) or "own"
    return Domain(
        name=name,
        title=f"{name} (own data)",
        splits=SPLITS[:2],
        convert=_convert,
        recipe=RECIPE,
        nano_recipe=RECIPE.for_nano(),
        benchmarks={"own": (plugins.find("benchmarks", "own"), DomainBenchmark(test="test", validation="validation"))},
        build=functools.partial(build, path),
        file=Path(__file__),
        about=about,
        changed=functools.partial(changed, path),
    )


def build(
    path: Path,
    folder: Path,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    crop: int = 0,
) -> Path:
    """Write the rows of the data at ``path`` into ``folder``.

    ``crop``: side in pixels to which annotated pictures are cut, 0 for none. DataError where nothing can be used; other
    records that cannot are faults of the training split.
    """
    if folder.resolve().is_relative_to((path.parent if _is_yaml(path) else path).resolve()):
        raise DataError(f"{folder} lies inside the data, and would be read with them; give an --output outside {path}")
    identity = _identity(path, seed, crop)
    if (folder / MADE).is_file() and read_object(folder / MADE).get("identity") == identity:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MADE).unlink(missing_ok=True)
    found = find(path, seed=seed, crop=crop, folder=folder / "crops")
    rows, faults = _look(found, progress)
    if not rows:
        raise DataError.of(faults, "no row is left") if faults else DataError(f"{path} holds no rows")
    splits, shared = divide(list(rows.values()), seed=seed)
    written = _write(found, dict(zip(rows, splits, strict=True)), folder, seed, progress)
    shown = {(split, key) for (keys, _), split in zip(rows.values(), splits, strict=True) for key in keys}
    lines = [{**dataclasses.asdict(fault), "file": str(fault.file)} for fault in faults]
    write_text(folder / FAULTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    if found.crops:
        write_json(folder / CROPS, found.crops, indent=None)
    else:
        (folder / CROPS).unlink(missing_ok=True)
    facts = {
        "identity": identity,
        "format": found.format,
        "named": are_named(split for _, split in rows.values()),
        "rows": {split: splits.count(split) for split in SPLITS},
        "pictures": {split: sum(at == split and not key.startswith(TEXT) for at, key in shown) for split in SPLITS},
        "questions": written.questions,
        "sources": {name: {"use": use, "rows": written.sources[name]} for name, use in found.sources.items()},
    }
    write_json(folder / MADE, {**facts, "warnings": [*found.notes, *_warnings(facts, written.answers, shared)]})
    return folder


def changed(
    path: Path,
    folder: Path,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    crop: int = 0,
) -> bool:
    """Whether ``build`` would now write other rows than those that ``folder`` holds; it is left as it is."""
    made = folder / MADE
    if not made.is_file() or read_object(made).get("identity") == _identity(path, seed, crop):
        return False
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as draft:
        again = build(path, Path(draft) / folder.name, seed=seed, progress=progress, crop=crop)
        return bool(filecmp.cmpfiles(again, folder, [f"{split}.jsonl" for split in SPLITS], shallow=False)[1])


def _identity(path: Path, seed: int, crop: int) -> dict[str, Any]:
    return {"path": str(path.resolve()), "files": _fingerprint(path), "seed": seed, "crop": crop}


def _look(found: Found, progress: Callable[[int, int], None]) -> tuple[dict[int, tuple[list[str], str]], list[Fault]]:
    """Number of each record that can be trained on -> (keys of its pictures, named split), and the faults."""
    rows, faults, hashes = dict[int, tuple[list[str], str]](), list[Fault](), ImageHashes()
    for number, one in enumerate(found.records()):
        if number % EVERY == 0:
            progress(0, 1)
        if isinstance(one, Fault):
            faults.append(one)
            continue
        try:
            trainable(normalise(one.sample.messages))
            for source in one.shown:
                image_dimensions(source)
            keys = [hashes.one(source) for source in one.shown]
        except (ValueError, OSError) as error:
            place = one.sample.place or f"{one.sample.source or found.format}: sample {one.sample.id}"
            file, place = place_of(place)
            faults.append(Fault(file=Path(file), place=place, reason=str(error)))
            continue
        rows[number] = (keys or [TEXT + question(one.sample.messages)], one.split)
    return rows, faults


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Written:
    questions: Mapping[str, int]  # by split
    sources: Mapping[str, Mapping[str, int]]  # rows of each source by split
    answers: Counter[str]  # to the questions of the training split


def _write(
    found: Found, splits: Mapping[int, str], folder: Path, seed: int, progress: Callable[[int, int], None]
) -> _Written:
    """The rows of each split; those for validation and test, which may be asked in part, in an order that is drawn."""
    asked, answers = dict.fromkeys(SPLITS, 0), Counter[str]()
    sources = {name: dict.fromkeys(SPLITS, 0) for name in found.sources}
    held: dict[str, list[str]] = {split: [] for split in SPLITS[1:]}
    done = 0
    with new_file(folder / "train.jsonl") as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        for number, one in enumerate(found.records()):
            if number not in splits or isinstance(one, Fault):
                continue
            split = splits[number]
            line = row_line(one.sample, folder, f"images/{number:06d}")
            for _, answer in asked_of(one.sample):
                asked[split] += 1
                if split == "train" and len(answers) < DISTINCT:
                    answers[answer.strip()] += 1
            if split == "train":
                file.write(line * one.repeat)
            else:
                held[split].append(line)
            if one.source:
                sources[one.source][split] += 1
            done += 1
            progress(done, len(splits))
    for split, lines in held.items():
        random.Random(f"{seed} {split}").shuffle(lines)
        write_text(folder / f"{split}.jsonl", "".join(lines))
    return _Written(questions=asked, answers=answers, sources=sources)


def _warnings(facts: Mapping[str, Any], answers: Counter[str], shared: int) -> Iterator[str]:
    """What is likely a mistake."""
    rows, asked = facts["rows"], facts["questions"]
    if rows["train"] < FEW_ROWS:
        yield f"there are only {rows['train']} rows to train on; some hundreds teach more, and scores of few say little"
    elif asked["test"] < FEW_QUESTIONS:
        yield f"there are only {asked['test']} test questions; their scores say little"
    if not sum(facts["pictures"].values()):
        yield "no row has a picture: nothing is learnt about images; are they named under image?"
    if len(answers) == 1:
        yield f'every training answer is "{next(iter(answers))[:60]}": there is nothing to learn from one answer'
    if shared:
        yield f"{shared:,} pictures, or groups that rows show together, are in more than one split of the data"


def about(folder: Path) -> list[str]:
    """What was found, in lines: format, splits, what each of several sources contributes, test questions by kind with
    shape and metric, warnings."""
    facts = read_object(folder / MADE)
    sizes = [
        f"{split} {facts['rows'][split]:,} rows about {facts['pictures'][split]:,} pictures with "
        f"{facts['questions'][split]:,} questions"
        for split in SPLITS
    ]
    how = "as the data name them" if facts["named"] else f"drawn by picture, seed {facts['identity']['seed']}"
    lines = [f"{facts['identity']['path']}: {facts['format']}", f"splits {how}: {'; '.join(sizes)}"]
    lines += _told_sources(facts["sources"])
    pairs = [
        (conversation[-1].text, answer)
        for sample in read_rows(folder / "test.jsonl")
        if isinstance(sample, Sample)
        for conversation, answer in asked_of(sample)
    ]
    kinds = Counter(own.shapes_of(pairs)).most_common()
    lines += [
        f"{count:,} test questions: {textwrap.shorten(kind, KIND_WIDTH, placeholder=' ...')}: {shapes.MEANING[shape]}"
        for (kind, shape), count in kinds[:KINDS_SHOWN]
    ]
    if more := kinds[KINDS_SHOWN:]:
        lines.append(f"{sum(count for _, count in more):,} test questions of {len(more):,} other kinds")
    return [*lines, *(f"warning: {warning}" for warning in facts["warnings"])]


def _told_sources(sources: Mapping[str, Any]) -> Iterator[str]:
    """What each source contributes, where there are several or one is not taken as it is."""
    told = [(name, one) for name, one in sources.items() if len(sources) > 1 or one["use"]]
    for name, one in told[:KINDS_SHOWN]:
        rows = ", ".join(f"{split} {count:,}" for split, count in one["rows"].items())
        yield f"rows of {name}: {rows}" + (f" ({one['use']})" if one["use"] else "")
    if more := [one for _, one in told[KINDS_SHOWN:]]:
        yield f"rows of {len(more):,} other sources: {sum(sum(one['rows'].values()) for one in more):,}"


def _convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """The rows as they were written; what could not be used counts with the training split."""
    yield from read_rows(raw / f"{split}.jsonl")
    if split == SPLITS[0]:
        for row in scan(raw / FAULTS):
            assert not isinstance(row, Fault)
            yield Fault(**{**row.raw, "file": Path(row.raw["file"])})


def _is_yaml(path: Path) -> bool:
    """Whether a path is a file such as YOLO's ``data.yaml``, which stands for its folder."""
    return path.suffix.lower() in (".yaml", ".yml") and path.is_file()


def _files(path: Path) -> list[Path]:
    """The file, or all files of the folder that it stands for, with those that a meta JSON among them names."""
    if path.is_file() and not _is_yaml(path):
        return [path, *(part.path for part in find_parts(path, Check()) if part.path != path)]
    folder = path.parent if path.is_file() else path
    found, named = sorted(folder.rglob("*")), set[Path]()
    for file in (*folder.glob("*.json"), *folder.glob("*/*.json")):
        with suppress(DataError):
            named.update(part.path for part in find_parts(file, Check()))
    return [*found, *sorted(named.difference(found))]


def _fingerprint(path: Path) -> str:
    """Names, sizes and times of the files of the data; not of images outside the folder."""
    digest = hashlib.sha256()
    for file in _files(path):
        if file.is_file():
            stat = file.stat()
            digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
