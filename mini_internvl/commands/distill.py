"""``minivl distill``: train a small encoder on the features of a large one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mini_internvl.commands._options import stoppable

EXAMPLE = "minivl distill recipes/distill_nano.yaml --output runs/student stages.0.steps=200"


def command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe with a student and a teacher.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b=value]...", help="Changes to the recipe.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME when left out.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that prepare pictures.")] = 1,
    extend: Annotated[bool, typer.Option("--extend", help="Go on with more steps of the last stage.")] = False,
) -> None:
    """Distil a small InternViT from a large one. Ctrl-C stops after the current step; the same command resumes.

    The student is written as a bare InternViT, which `minivl build` joins to a language model.
    """
    from mini_internvl import ranks, recipes, terminal
    from mini_internvl.train.distil import distil

    settings = recipes.load(recipe, overrides or [])
    folder = output or Path("runs") / settings.name
    bar = terminal.TrainingBar()
    best = distil(settings, folder, on_progress=bar, stoppable=stoppable, workers=workers, extend=extend)
    if ranks.is_first():
        typer.echo(f"student: {best}")
        typer.echo(f"next:    minivl build --vision {best} --llm FOLDER OUTPUT")
