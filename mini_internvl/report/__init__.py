"""Reports: one self-contained HTML page of an evaluation, a comparison, a training run or an adaptation.

The page has the parts that its folder has data for: scores with their errors and the examples behind them, what
changed against another model, the curves of the training, the commands that go on from there. Style, images and a
short script are inside the file; without the script every example is listed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mini_internvl.files import write_text
from mini_internvl.report import examples, settings, training
from mini_internvl.report.explain import explain
from mini_internvl.report.folders import Parts, Result, read_evaluation, read_parts
from mini_internvl.report.page import render, require
from mini_internvl.report.paired import STATES
from mini_internvl.report.sections import Line, Section, compare, verdict, warnings

__all__ = ["Line", "Section", "build", "compare", "read_evaluation", "require", "verdict"]

SCRIPT = Path(__file__).parent / "templates" / "page.js"
UNFOLDED = 3
"""With more benchmarks than this, their examples are folded."""


def build(run: str | Path, against: str | Path | None = None) -> Path:
    """Write ``report.html`` into a run folder, whole or not at all.

    Args:
        run: folder that ``minivl eval``, ``train`` or ``adapt`` wrote.
        against: another one with the same benchmarks, an earlier or simpler model; the page then shows how ``run``
            differs from it. An adaptation is compared with its own base unless this says otherwise.

    Returns:
        The path of the file.

    Raises:
        ValueError: a folder holds nothing to show, a file is damaged (file and key or line named), the two have no
            benchmark in common, or jinja2 is missing.
    """
    run = Path(run)
    parts = read_parts(run)
    others = parts.base if against is None else read_parts(Path(against)).results
    sections = compare(parts.results, others)
    if others is not None and not any(section.other for section in sections):
        known = [", ".join(sorted({result.benchmark for result in side})) for side in (parts.results, others)]
        raise ValueError(f"{run} ({known[0]}) and {against} ({known[1]}) have no benchmark in common")
    chosen = [examples.collect(section.result, section.other, len(sections)) for section in sections]
    examples.draw_images([example for part in chosen for example in part.examples])
    names = _names(parts, run, others, against)
    script = SCRIPT.read_text(encoding="utf-8")
    page = render(
        "page.html",
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        kind="comparison" if against else "adaptation" if parts.base else "evaluation" if parts.results else "training",
        title=_title(parts, run, names, against),
        names=names,
        explain=explain,
        places=_places(parts, run, against),
        compared=others is not None,
        verdict=_verdict(parts, sections, names, against) if others is not None else "",
        groups=_groups(parts, sections),
        sections=list(zip(sections, chosen, strict=True)),
        alone=[other.title for other in others or () if not any(other is section.other for section in sections)],
        states=STATES if others is None else {**STATES, "unjudged": "Not compared"},
        unfolded=len(sections) <= UNFOLDED,
        next_commands=settings.next_commands(parts, run),
        commands=[parts.facts["command"]] if parts.facts.get("command") else settings.commands(parts.results),
        facts_=settings.of_run(parts.facts) or settings.common(parts.results),
        settings=[(s.anchor, s.result.title, settings.own(s.result, parts.results)) for s in sections],
        **_training(parts, [*warnings(sections, names, others)]),
    )
    write_text(run / "report.html", page, errors="replace")  # half a character becomes a question mark
    return run / "report.html"


def _training(parts: Parts, found: list[str]) -> dict[str, Any]:
    """The values of the page that come from the log and the recipe."""
    log = training.read_log(parts.log) if parts.log else training.Log()
    if log.unreadable:
        found.append(f"{log.unreadable:,} lines of the training log cannot be read and are left out.")
    counts, recipe = parts.facts.get("validation"), parts.facts.get("recipe")
    return {
        "warnings": found,
        "charts": training.charts(log, counts if isinstance(counts, Mapping) else {}),
        "summary": training.summary(log),
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else "",
    }


def _title(parts: Parts, run: Path, names: tuple[str, str], against: str | Path | None) -> str:
    if against is not None:
        return f"{names[0]} against {names[1]}"
    recipe = parts.facts.get("recipe")
    name = parts.facts.get("title") or parts.facts.get("domain") or (names[0] if parts.results else "")
    return str(name or (recipe.get("name") if isinstance(recipe, Mapping) else "") or run.resolve().name)


def _places(parts: Parts, run: Path, against: str | Path | None) -> list[tuple[str, str]]:
    """(class of its colour, where it lies) of each run."""
    if parts.base is None or against is not None:
        return [("this", str(run)), *([("other", str(against))] if against is not None else [])]
    base = settings.model(parts.base[0])
    checkpoint = run / str(parts.facts.get("checkpoint", ""))
    return [("other", str(base.get("path") or base.get("name"))), ("this", str(checkpoint))]


def _names(parts: Parts, run: Path, others: Sequence[Result] | None, against: str | Path | None) -> tuple[str, str]:
    """What the two runs are called: by model, by folder where that is the same, by path where that is, too."""
    if against is None:
        return ("adapted", "base") if parts.base is not None else (settings.model_name(parts.results), "")
    models = (settings.model_name(parts.results), settings.model_name(others or ()))
    short = tuple(name.rstrip("/").rsplit("/", 1)[-1] for name in models)
    for mine, theirs in (short, models, (run.resolve().name, Path(against).resolve().name)):
        if mine != theirs:
            return mine, theirs
    return str(run), str(against)


def _groups(parts: Parts, sections: Sequence[Section]) -> list[tuple[str, list[Section]]]:
    """(heading, benchmarks) of the overview: a domain's own ones apart from those of general ability."""
    probe = parts.facts.get("probe") or ()
    general = [section for section in sections if section.result.benchmark in probe]
    domain = [section for section in sections if section not in general]
    if not general:
        return [("", domain)]
    return [("The domain: what was learned", domain), ("General ability: what was forgotten", general)]


def _verdict(parts: Parts, sections: Sequence[Section], names: tuple[str, str], against: str | Path | None) -> str:
    if parts.base is not None and against is None:
        names = ("the adapted model", "the base")
    text = " General ability: ".join(verdict(part, names) for _, part in _groups(parts, sections) if part)
    return text[0].upper() + text[1:] if text.startswith(("the ", "no ")) else text
