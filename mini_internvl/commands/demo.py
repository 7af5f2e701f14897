"""``minivl demo``: nano answers about drawn images, then is adapted to driving, in minutes on two cores."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mini_internvl import load, synth
from mini_internvl.adapt import AdaptConfig
from mini_internvl.commands._options import AsJson, stoppable
from mini_internvl.commands.adapt import run as run_adapt
from mini_internvl.engine.engine import user

EXAMPLE = "minivl demo"
DEMO_KINDS = ("shapes", "words", "charts")


def command(
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    json: AsJson = False,
) -> None:
    """Run a demo in minutes: nano answers about images, is adapted to driving, and a report compares both."""
    if not json:
        _show_answers(output / "images")
    config = AdaptConfig(
        domain="driving-sim", output=output, command=f"minivl demo --output {shlex.quote(str(output))}"
    )
    with stoppable() as should_stop:
        run_adapt(config, should_stop, as_json=json)


def _show_answers(folder: Path) -> None:
    """Nano's answers on images it has never seen, kept as files to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    engine = load()
    typer.echo("The nano model that ships with the package, on images it has never seen:")
    for kind in (kind for kind in DEMO_KINDS if synth.missing(kind) is None):
        image, (asked, *_) = synth.draw(kind, 4, 1, "test")
        path = folder / f"{kind}.png"
        image.save(path)
        reply = engine.chat(user(asked.question, path))
        typer.echo(f'  minivl ask {path} "{asked.question}"\n    {reply.text}   (reference: {asked.answer})')
    typer.echo("")
