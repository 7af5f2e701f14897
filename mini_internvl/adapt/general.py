"""General data of an adaptation: what ``--general`` names, and the original files among it as rows.

Several parts become one meta JSON in InternVL's form, so a pass takes each part's rows as often as it says itself, and
parts weigh by their rows. Layout below the run folder::

    general/NAME/train.jsonl   the rows of a domain's raw folder (``domains/_rows.py``), with faults.jsonl
    general/meta.json          all parts
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mini_internvl import plugins, synth
from mini_internvl.data.check import Check
from mini_internvl.data.parts import find_parts
from mini_internvl.domains import Domain, load_domain
from mini_internvl.domains._rows import convert
from mini_internvl.files import write_json
from mini_internvl.recipes import SourceRecipe

DRAWN = "synth"  # what ``general`` and ``probe`` call the drawn images, whose training data nano's came from
DRAWN_SHARES = {"shapes": 3.0, "words": 3.0, "charts": 4.0, "text": 1.0}
"""Drawn general samples that are mixed in, with their shares."""
NONE = "none"
FOLDER, META = "general", "meta.json"


@dataclass(frozen=True, kw_only=True)
class General:
    """General data, settled before the work begins."""

    sources: tuple[SourceRecipe, ...] = ()  # their weights sum to the ratio
    line: str  # about it, for people
    parts: tuple[str, ...] = ()  # what was named
    domains: Mapping[str, tuple[Domain, Path]] = field(default_factory=dict)  # to convert, with their raw folders
    files: tuple[Path, ...] = ()  # of rows, or meta JSONs, that go into one meta JSON with the domains

    def prepare(self, folder: Path, *, on_note: Callable[[str], None], **how: Any) -> None:
        """Convert the domains' raw records into ``folder`` and write the meta JSON of all parts.

        ``on_note`` takes a line about each domain; ``how`` goes to ``domains._rows.convert`` with it.

        Raises:
            DataError: a domain has no records, too many faults or rows that are not those ``fixed``; or a meta JSON is
                wrong.
            Interrupted: stopped; the next call goes on with the first domain that is not converted.
        """
        if not self.domains and not self.files:
            return
        entries: dict[str, dict[str, Any]] = {}
        for name, (domain, raw) in self.domains.items():
            alone = replace(domain, splits=domain.splits[:1])
            kept = convert(alone, raw, folder / name, on_note=on_note, **how)
            [(split, found)] = kept.items()
            entries[name] = {"annotation": f"{name}/{split}.jsonl", "repeat_time": 1, "length": found["rows"]}
            unusable = f", {found['faults']:,} unusable" if found["faults"] else ""
            on_note(f"general data {name}: {found['rows']:,} rows{unusable}")
        for path in self.files:
            for part in find_parts(path, Check()):
                name = _free(part.name or part.path.stem, entries)
                entries[name] = {"annotation": os.path.abspath(part.path), "repeat_time": part.repeat}
                if part.root is not None:
                    entries[name]["root"] = os.path.abspath(part.root)
                if part.max_tiles is not None:
                    entries[name]["max_dynamic_patch"] = part.max_tiles
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / META, entries)


def settle(general: str, ratio: float, seed: int, folder: Path) -> General:
    """What ``general`` names: ``synth``, ``none``, or parts separated by commas, each a file or ``DOMAIN=FOLDER``.

    ``folder`` is where several parts, and the rows of domains, will be put together. ValueError says what is wrong.
    """
    if general == NONE or not ratio:
        return General(line="no general data: more is forgotten without it; give some with --general")
    if general == DRAWN:
        return General(sources=_drawn(ratio, seed), line=f"general data: drawn images, {ratio:g} to 1", parts=(DRAWN,))
    parts = (general,) if Path(general).is_file() else tuple(part.strip() for part in general.split(","))
    domains: dict[str, tuple[Domain, Path]] = {}
    files = list[Path]()
    for part in parts:
        name, equals, place = part.partition("=")
        if not part:
            raise ValueError("the general data end with a comma or have two in a row; take one out")
        if Path(part).is_file():
            if any(Path(part).samefile(file) for file in files):
                raise ValueError(f"the general data {part} is named twice; name it once, repeat_time weighs it more")
            files.append(Path(part))
        elif part in (DRAWN, NONE):
            raise ValueError(f"--general {part} goes with nothing else; leave it out, or the other parts")
        elif equals:
            domain = load_domain(name)
            if domain.about is not None:
                raise ValueError(f"{name} is data already; name it without ={place}")
            if not Path(place).is_dir():
                raise ValueError(f"{place} is no folder; --general {name}=FOLDER takes the folder of the raw records")
            if domain.name in domains:
                raise ValueError(f"the general data {domain.name} is named twice; put its records into one folder")
            domains[domain.name] = (domain, Path(place))
        else:
            raise ValueError(f"the general data {part} is no file; {_how(part)}")
    used = [f"{part.name}: {part.use()}" for path in files for part in find_parts(path, Check()) if part.use()]
    line = f"general data: {', '.join(parts)}, {ratio:g} to 1" + (f" ({'; '.join(used)})" if used else "")
    if not domains and len(files) == 1:
        return General(sources=_rows(files[0], ratio), line=line, parts=parts)
    sources = _rows(folder / META, ratio)
    return General(sources=sources, line=line, parts=parts, domains=domains, files=tuple(files))


def _how(part: str) -> str:
    if plugins.short_name(part) in plugins.list_names("domains"):
        return f"say where its raw records lie: --general {part}=FOLDER"
    return "--general takes a meta file, a file of rows or DOMAIN=FOLDER, or several with commas between"


def _rows(path: Path, ratio: float) -> tuple[SourceRecipe, ...]:
    return (SourceRecipe(kind="rows", path=str(path), weight=ratio),)


def _drawn(ratio: float, seed: int) -> tuple[SourceRecipe, ...]:
    total = sum(DRAWN_SHARES.values())
    for kind in DRAWN_SHARES:
        if reason := synth.missing(kind):
            raise ValueError(f"{reason}; or leave the drawn images out with --general none")
    return tuple(
        SourceRecipe(kind="synth", name=kind, weight=ratio * share / total, seed=7 + seed)
        for kind, share in DRAWN_SHARES.items()
    )


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """The name, with a number where it is taken."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found
