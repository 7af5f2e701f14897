"""The page of a probe: measures of encoders with their differences, agreement with a teacher, maps and neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mini_internvl.evaluate.probing.run import PROBE, TITLES
from mini_internvl.evaluate.probing.shown import SHOWN
from mini_internvl.files import read_bytes, read_object, write_text
from mini_internvl.report import svg
from mini_internvl.report.folders import want
from mini_internvl.report.images import as_url
from mini_internvl.report.page import number, render, signed
from mini_internvl.report.paired import share

MOST_IMAGES = 600  # images of a page


class Row(NamedTuple):
    """A measure of all encoders, and how the first differs from each other one."""

    title: str
    items: int
    values: Sequence[str]
    differences: Sequence[tuple[str, bool]]  # in words, whether it is clear
    bars: str


class Section(NamedTuple):
    """One task."""

    task: Mapping[str, Any]
    rows: Sequence[Row]
    ranks: Sequence[str]
    agreements: Sequence[Mapping[str, Any]]
    pictures: Sequence[Mapping[str, Any]]


def is_probe(run: Path) -> bool:
    """Whether a folder holds what ``minivl probe`` wrote."""
    return (run / PROBE).is_file()


def build_probe(run: Path) -> Path:
    """Write ``report.html`` into the folder of a probe; ValueError names a damaged file, with its key."""
    facts = read_object(run / PROBE)
    shown = read_object(run / SHOWN) if (run / SHOWN).is_file() else {}
    models, tasks, results, agreements = (
        want(run / PROBE, facts, key, list) for key in ("models", "tasks", "results", "agreements")
    )
    names, left = [one["name"] for one in models], MOST_IMAGES
    pictures = {}
    for one in want(run / SHOWN, shown, "tasks", list, []):
        pictures[one["name"]], left = _pictures(run, one["pictures"], left)
    sections = []
    for task in tasks:
        found = {one["model"]: one for one in results if one["task"] == task["name"]}
        beside = [_agreement(one) for one in agreements if one["task"] == task["name"]]
        shown_of = pictures.get(task["name"], [])
        sections.append(Section(task, _rows(found, names), _ranks(found, names), beside, shown_of))
    page = render(
        "probe.html",
        title=", ".join(name for name in names if name != facts.get("teacher")) or names[0],
        names=names,
        teacher=facts.get("teacher", ""),
        reference=shown.get("reference", ""),
        sections=sections,
        facts_=_facts(facts, models),
    )
    write_text(run / "report.html", page, errors="replace")
    return run / "report.html"


def _rows(results: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[Row]:
    rows = []
    for key, title in TITLES.items():
        measures = [results[name]["measures"][key] for name in names]
        differences = []
        for other in measures[1:]:
            mine, theirs = (
                {str(at): mark == "1" for at, mark in enumerate(one["marks"])} for one in (measures[0], other)
            )
            found = share(mine, theirs)
            differences.append((f"{signed(found.value, 1)} ± {number(found.error, 1)}", found.clear))
        roles = ["this", *["other"] * (len(names) - 1)]
        bars = [(role, one["value"], one["error"]) for role, one in zip(roles, measures, strict=True)]
        values = [f"{number(one['value'], 1)} ± {number(one['error'], 1)}" for one in measures]
        rows.append(Row(title, measures[0]["items"], values, differences, svg.error_bars(bars, 100.0)))
    return rows


def _ranks(results: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Effective rank of each encoder, of the width of its features."""
    return [f"{number(results[name]['rank'], 1)} of {results[name]['width']:,}" for name in names]


def _agreement(one: Mapping[str, Any]) -> dict[str, Any]:
    """Charts of one encoder beside its teacher."""
    lines = [
        svg.Series(
            name=name, points=[(int(state), value) for state, value in one[key].items()], colour=colour, dots=True
        )
        for colour, (key, name) in enumerate((("mapped", "after a linear map"), ("plain", "as they are")), 1)
    ]
    lines = [line for line in lines if line.points]
    last = len(one["cka"]) - 1
    return {
        **one,
        "cosines": svg.line_chart(
            title="Cosine with the teacher", x_title=f"hidden state of {one['model']}", y_title="cosine", series=lines
        ),
        "legend": lines if len(lines) > 1 else [],
        "heat": svg.heat_map(
            title="CKA of hidden states",
            x_title=f"hidden state of {one['teacher']}",
            y_title=f"hidden state of {one['model']}",
            values=one["cka"],
        ),
        "last": number(one["cka"][last][-1], 3),
    }


def _pictures(run: Path, rows: Sequence[Mapping[str, Any]], left: int) -> tuple[list[dict[str, Any]], int]:
    """The rows with images as data URLs, and how many more may be shown."""
    found = []
    for row in rows:
        count = 1 + len(row["maps"]) + sum(map(len, row["neighbours"].values()))
        if count > left:
            break
        left -= count
        near = {
            name: [{**one, "url": _url(run, one["image"]), "right": one["label"] == row["label"]} for one in ones]
            for name, ones in row["neighbours"].items()
        }
        maps = {name: _url(run, file) for name, file in row["maps"].items()}
        found.append({**row, "url": _url(run, row["image"]), "maps": maps, "neighbours": near})
    return found, left


def _url(run: Path, name: str) -> str | None:
    """A saved image as a data URL; ``None`` where it is gone, or names a place outside the folder."""
    path = (run / name).resolve()
    if not path.is_relative_to(run.resolve()) or not path.is_file():
        return None
    return as_url(read_bytes(path), "png" if path.suffix == ".png" else "jpeg")


def _facts(facts: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    settings = facts.get("settings", {})
    found = []
    for one in models:
        size = f"{one['parameters'] / 1e6:,.1f} M parameters, {one['states']} hidden states of {one['hidden_size']}"
        path = f", {one['path']}" if one.get("path") else ""
        found.append((one["name"], f"{size}, one tile of {one['image_size']} pixels{path}"))
    names = {
        "layer": "hidden state",
        "pool": "features of a picture",
        "neighbours": "nearest neighbours that vote",
        "temperature": "temperature of their votes",
        "views": "most pictures with another view",
        "seed": "seed",
    }
    return found + [(title, str(settings[key])) for key, title in names.items() if key in settings]
