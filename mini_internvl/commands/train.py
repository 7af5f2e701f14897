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
    budget: Annotated[
        str | None,
        typer.Option(help="Share of rows that may be unusable (1%), at least one row; recipe: max_faults."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Go on with more steps or other data of the last stage.")
    ] = False,
) -> None:
    """Train a model as a recipe says. Ctrl-C stops after the current step; the same command resumes.

    Rows that cannot be used are set aside in quarantine.jsonl. Under torchrun all processes train one model.
    """
    from mini_internvl import ranks, recipes, terminal
    from mini_internvl.train.run import run_recipe

    changes = [f"max_faults={0 if strict else _share(budget)}"] if strict or budget is not None else []
    settings = recipes.load(recipe, [*(overrides or []), *changes])
    folder = output or Path("runs") / settings.name
    best = run_recipe(
        settings,
        folder,
        on_progress=terminal.TrainingBar(),
        stoppable=stoppable,
        workers=workers,
        extend=extend,
        tell=lambda line: typer.echo(line, err=True),
    )
    if ranks.is_first():
        typer.echo(f"checkpoint: {best}")


def _share(text: str | None) -> float:
    """``1%`` or ``0.01``."""
    given = (text or "").strip()
    try:
        return float(given.removesuffix("%")) / (100 if given.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f'"{given}" is no share; write for instance 1%', param_hint="--budget") from None
