"""``minivl report``: write the HTML report of an adaptation or an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "minivl report runs/eval-1B --against runs/eval-nano"


def command(
    run: Annotated[Path, typer.Argument(help="Folder of an adaptation or an evaluation.")],
    against: Annotated[
        Path | None, typer.Option(help="Another evaluation: shows what changed, item by item, since that one.")
    ] = None,
) -> None:
    """Write the HTML report of an adaptation or an evaluation."""
    from mini_internvl import report as reports

    typer.echo(reports.build(run, against))
