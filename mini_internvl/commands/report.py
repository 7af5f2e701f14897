"""``minivl report``: the HTML page of an evaluation, a training run, an adaptation, a probe, or a comparison of two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "minivl report runs/eval-1B --against runs/eval-nano"


def command(
    run: Annotated[Path, typer.Argument(help="Folder that eval, train, adapt or probe wrote.")],
    against: Annotated[
        Path | None, typer.Option(help="Another run with the same benchmarks: show what changed since that one.")
    ] = None,
) -> None:
    """Write the HTML report of a run: scores, examples, training curves, and what changed against another run."""
    from mini_internvl import report as reports

    typer.echo(reports.build(run, against))
