"""``minivl adapt``: the pipeline with its progress, then the table and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import typer

from mini_internvl import terminal
from mini_internvl.adapt import AdaptConfig, Listener, adapt
from mini_internvl.report import adaptation

TITLES = {"data": "building clips", "adapt": "adapting"}


def run(config: AdaptConfig, should_stop: Callable[[], bool], *, as_json: bool = False) -> dict[str, Any]:
    """Adapt, print the table, name the report. Returns the content of adapt.json."""
    state: dict[str, Any] = {}

    def step(title: str) -> None:
        state["counter"] = terminal.Counter(TITLES.get(title, title))

    listener = Listener(
        step=step,
        count=lambda done, total: state["counter"](done, total),
        train=terminal.Training(),
        should_stop=should_stop,
    )
    result = adapt(config, listener)
    path = adaptation.build(config.output)
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False, indent=1))
        return result
    print_tables(result)
    typer.echo(f"\nchanged weights: {config.output / 'train' / 'best'}\nreport: {path}")
    return result


def print_tables(result: Mapping[str, Any]) -> None:
    """Base against adapted on the domain, then general ability."""
    rows = []
    for row in adaptation.rows(result):
        mark = {True: "better", False: "worse", None: "same"}[row.better]
        rows.append((f"{row.group} {row.label}", f"{row.base:.2f}", f"{row.adapted:.2f}", mark))
    terminal.table(f"{result['title']}: base against adapted", ("", "base", "adapted", ""), rows)
    general = result["general"]
    kept = [
        (kind, f"{general['base'][kind]:.1f}", f"{general['adapted'][kind]:.1f}", str(general["items"][kind]))
        for kind in general["items"]
    ]
    kept.append(("mean", f"{general['mean']['base']:.1f}", f"{general['mean']['adapted']:.1f}", ""))
    terminal.table("General ability, % right", ("", "base", "adapted", "items"), kept)
