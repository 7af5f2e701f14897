"""``minivl train``: train by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mini_internvl.commands._options import stoppable

EXAMPLE = "minivl train recipes/nano.yaml --output runs/nano stages.0.lr=5e-4"


def command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b=value]...", help="Changes to the recipe.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME when left out.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that prepare samples.")] = 1,
) -> None:
    """Train a model as a recipe says. Ctrl-C stops after the current step; the same command resumes."""
    from mini_internvl import recipes, terminal
    from mini_internvl.train.run import run_recipe

    settings = recipes.load(recipe, overrides or [])
    folder = output or Path("runs") / settings.name
    best = run_recipe(settings, folder, on_progress=terminal.TrainingBar(), stoppable=stoppable, workers=workers)
    typer.echo(f"checkpoint: {best}")
