"""Reports: one self-contained HTML page of an evaluation, a comparison, a training run, an adaptation or a probe.

The page has the parts that its folder has data for: scores with their errors and the examples behind them, what
changed against another model, the curves of the training, the commands that go on from there. Style, images and a
short script are inside the file; without the script every example is listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mini_internvl.files import write_text
from mini_internvl.report import examples, probe, settings, training, watch
from mini_internvl.report.explain import explain
from mini_internvl.report.folders import UNSEEING, Parts, Result, read_evaluation, read_parts
from mini_internvl.report.page import render, require, script
from mini_internvl.report.paired import STATES
from mini_internvl.report.sections import Line, Section, bars, baseline_names, compare, unseeing, verdict, warnings

__all__ = [
    "Line",
    "Section",
    "baseline_names",
    "build",
    "compare",
    "read_evaluation",
    "read_parts",
    "require",
    "unseeing",
    "verdict",
]

Pair = tuple[str, str]
UNFOLDED = 3  # with more benchmarks than this, their examples are folded


def build(run: str | Path, against: str | Path | None = None) -> Path:
    """Write ``report.html`` into a run folder, whole or not at all; returns its path.

    Args:
        run: folder that ``minivl eval``, ``train``, ``adapt`` or ``probe`` wrote.
        against: another one with the same benchmarks, an earlier or simpler model; the page then shows how ``run``
            differs from it. An adaptation is compared with its own base unless this says otherwise.

    Raises:
        ValueError: a folder holds nothing to show, a file is damaged (file and key or line named), the two have no
            benchmark in common, or jinja2 is missing.
    """
    run = Path(run)
    if probe.is_probe(run):
        if against is not None:
            raise ValueError(f"{run} is of minivl probe; to compare encoders name them all in one minivl probe")
        return probe.build_probe(run)
    parts = read_parts(run)
    others = parts.base if against is None else read_parts(Path(against)).results
    sections = compare(parts.results, others, parts.baselines if against is None else {})
    if others is not None and not any(section.other for section in sections):
        known = [", ".join(sorted({result.benchmark for result in side})) for side in (parts.results, others)]
        raise ValueError(f"{run} ({known[0]}) and {against} ({known[1]}) have no benchmark in common")
    chosen = [examples.collect(section.result, section.other, len(sections)) for section in sections]
    examples.draw_images([example for part in chosen for example in (*part.pictures, *part.examples)])
    names, called, places = _sides(parts, run, others, against)
    groups = _groups(parts, sections)
    log, trained = _trained(parts)
    found = [*warnings(sections, names, others)]
    if log.unreadable:
        found.append(f"{log.unreadable:,} lines of the training log cannot be read and are left out.")
    code, digest = script()
    page = render(
        "page.html",
        script=code,
        script_hash=digest,
        kind="comparison" if against else "adaptation" if parts.base else "evaluation" if parts.results else "training",
        title=_title(parts, run, names, against),
        names=names,
        explain=explain,
        bars=bars,
        places=places,
        compared=others is not None,
        baselines={name: UNSEEING.get(name, "") for name in baseline_names(sections)},
        verdict=_verdict(groups, called) if others is not None else "",
        warnings=found,
        groups=groups,
        sections=list(zip(sections, chosen, strict=True)),
        alone=[other.title for other in others or () if not any(other is section.other for section in sections)],
        states=STATES if others is None else {**STATES, "unjudged": "Not compared"},
        unfolded=len(sections) <= UNFOLDED,
        **trained,
        next_commands=settings.next_commands(parts, run),
        commands=[parts.facts["command"]] if parts.facts.get("command") else settings.commands(parts.results),
        facts_=settings.of_run(parts.facts) or settings.common(parts.results),
        settings=[(s.anchor, s.result.title, settings.own(s.result, parts.results)) for s in sections],
    )
    write_text(run / "report.html", page, errors="replace")  # half a character becomes a question mark
    return run / "report.html"


def _trained(parts: Parts) -> tuple[training.Log, dict[str, Any]]:
    """The training log, and what the page shows of the training."""
    log = training.read_log(parts.log) if parts.log else training.Log()
    recipe, counts = parts.facts.get("recipe"), parts.facts.get("validation")
    given = recipe if isinstance(recipe, Mapping) else {}
    watched = watch.watch(parts.log.parent, log, given) if parts.log else watch.Watched(speed=log)
    return log, {
        "charts": training.charts(log, counts if isinstance(counts, Mapping) else {}, watched.speed),
        "summary": training.summary(log, watched.speed),
        "watched": watched,
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else "",
    }


def _sides(
    parts: Parts, run: Path, others: Sequence[Result] | None, against: str | Path | None
) -> tuple[Pair, Pair, list[Pair]]:
    """What the two runs are called, and in the verdict; (class of its colour, where it lies) of each.

    Two runs are called by model, by folder where that is the same, by path where that is, too.
    """
    if against is not None:
        models = (settings.model_name(parts.results), settings.model_name(others or ()))
        short = tuple(name.rstrip("/").rsplit("/", 1)[-1] for name in models)
        paths, folders = (str(run), str(against)), (run.resolve().name, Path(against).resolve().name)
        names = next(((mine, theirs) for mine, theirs in (short, models, folders) if mine != theirs), paths)
        return names, names, [("this", paths[0]), ("other", paths[1])]
    if parts.base is None:
        names = (settings.model_name(parts.results), "")
        return names, names, [("this", str(run))]
    base = settings.model(parts.base[0])
    checkpoint = run / str(parts.facts.get("checkpoint", ""))
    places = [("other", str(base.get("path") or base.get("name"))), ("this", str(checkpoint))]
    return ("adapted", "base"), ("the adapted model", "the base"), places


def _title(parts: Parts, run: Path, names: Pair, against: str | Path | None) -> str:
    if against is not None:
        return f"{names[0]} against {names[1]}"
    recipe = parts.facts.get("recipe")
    name = parts.facts.get("title") or parts.facts.get("domain") or (names[0] if parts.results else "")
    return str(name or (recipe.get("name") if isinstance(recipe, Mapping) else "") or run.resolve().name)


def _groups(parts: Parts, sections: Sequence[Section]) -> list[tuple[str, list[Section]]]:
    """(heading, benchmarks) of the overview: a domain's own ones apart from those of general ability."""
    probe = parts.facts.get("probe") or ()
    general = [section for section in sections if section.result.benchmark in probe]
    domain = [section for section in sections if section not in general]
    if not general:
        return [("", domain)]
    return [("The domain: what was learned", domain), ("General ability: what was forgotten", general)]


def _verdict(groups: Sequence[tuple[str, list[Section]]], called: Pair) -> str:
    text = " General ability: ".join(verdict(part, called) for _, part in groups if part)
    return text[0].upper() + text[1:] if text.startswith(("the ", "no ")) else text
