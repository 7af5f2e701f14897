"""``minivl table``: the paper's tables, with the rows of one's own evaluations beneath the published ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from mini_internvl.evaluate import formats, tables
from mini_internvl.evaluate.sheets import SHEETS


def run(names: Sequence[str], runs: Sequence[Path], form: str, *, as_json: bool) -> None:
    """Read the runs, fill the tables, print them.

    Raises:
        ValueError: an unknown table or format, or a run folder that cannot be read.
    """
    if form not in formats.FORMATS:
        raise ValueError(f'there is no format "{form}"; known: {", ".join(formats.FORMATS)}')
    scores = [tables.read_run(folder) for folder in dict.fromkeys(runs)]
    filled = [table for name in dict.fromkeys(names or SHEETS) for table in tables.build(name, scores)]
    if as_json:
        typer.echo(json.dumps([formats.data(table) for table in filled], ensure_ascii=False, indent=1))
    else:
        typer.echo("\n".join(formats.FORMATS[form](table) for table in filled), nl=False)
    known = {column.benchmark for name in names or SHEETS for s in SHEETS[name] for column in s.columns}
    for folder, found in zip(dict.fromkeys(runs), scores, strict=True):
        if not known & {score.benchmark for score in found}:
            typer.echo(f"{folder} has no score of these tables' benchmarks", err=True)
