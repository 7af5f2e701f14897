"""``minivl table``: the paper's tables, with the rows of one's own evaluations beneath the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mini_internvl.commands._options import AsJson, echo_json
from mini_internvl.evaluate import formats, tables
from mini_internvl.evaluate.paper_tables import PAPER_TABLES

EXAMPLE = "minivl table general --runs runs/1B --format markdown"


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TABLE]...", help="general, remote, medical, bddx, drivelm; all when left out."),
    ] = None,
    runs: Annotated[list[Path] | None, typer.Option(help="Folder written by eval; may be repeated.")] = None,
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv or latex.")] = "text",
    json: AsJson = False,
) -> None:
    """Print the paper's tables, with your scores beneath the published ones."""
    runs = list(dict.fromkeys(runs or []))
    if form not in formats.FORMATS:
        raise ValueError(f'there is no format "{form}"; known: {", ".join(formats.FORMATS)}')
    scores = [tables.read_run(folder) for folder in runs]
    filled = [table for name in dict.fromkeys(names or PAPER_TABLES) for table in tables.build(name, scores)]
    if json:
        echo_json([formats.data(table) for table in filled])
    else:
        typer.echo("\n".join(formats.FORMATS[form](table) for table in filled), nl=False)
    known = {column.benchmark for name in names or PAPER_TABLES for s in PAPER_TABLES[name] for column in s.columns}
    for folder, found in zip(runs, scores, strict=True):
        if not known & {score.benchmark for score in found}:
            typer.echo(f"{folder} has no score of these tables' benchmarks", err=True)
