"""``minivl quantize``: a checkpoint or adapter as int4 or int8 for a CPU, kept only if it still answers as before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mini_internvl import terminal
from mini_internvl.commands._options import AsJson, echo_json

EXAMPLE = "minivl quantize runs/driving-sim/best --bits 4"


def command(
    model: Annotated[str, typer.Argument(help="Checkpoint or adapter folder, hub id, or nano.")],
    output: Annotated[
        Path | None,
        typer.Argument(help="Folder to write; left out, inside MODEL's own, where --model MODEL finds it."),
    ] = None,
    bits: Annotated[int, typer.Option(help="Of the decoder's weights: 4, 8, or 16, which keeps them.")] = 4,
    encoder_bits: Annotated[
        int | None, typer.Option(help="Of the encoder: 8, or 16; 16 with --bits 16.", show_default=False)
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures like those it will see; drawn ones when left out.")
    ] = None,
    tiles: Annotated[int, typer.Option(min=1, help="Tiles on which the encoder's ranges are measured.")] = 32,
    limit: Annotated[int, typer.Option(min=1, help="Questions of each kind that both models are asked.")] = 20,
    force: Annotated[bool, typer.Option("--force", help="Keep it although it answers otherwise.")] = False,
    json: AsJson = False,
) -> None:
    """Make a model small and fast on a CPU: int4 or int8 weights for OpenVINO, ready for minivl ask.

    It ends with what quantising changed: features, tokens, a score before and after, and a page of answers that
    differ. Where too much did, nothing is written, unless --force says so.
    """
    from mini_internvl.engine import beside
    from mini_internvl.quantize import export, run

    plan = export.Plan(bits=bits, encoder_bits=encoder_bits or (16 if bits == 16 else 8))
    wanted = None if model == "nano" else model
    bars: dict[str, terminal.ProgressBar] = {}

    def progress(title: str, done: int, total: int) -> None:
        bars.setdefault(title, terminal.ProgressBar(title))(done, total)

    try:
        folder, done = run.quantise(
            wanted, output, plan, pictures=pictures, tiles=tiles, limit=limit, force=force, progress=progress
        )
    finally:
        terminal.close()
    if json:
        echo_json({"folder": str(folder), **done})
        return
    terminal.table(f"{done['model']} as int{bits}", ("", "plain", "quantised"), rows(done))
    if done["problem"]:
        typer.secho(f"kept although {done['problem']}", err=True, fg="yellow" if terminal.err.is_terminal else None)
    typer.echo(f"quantised: {folder}\nwhat changed: {folder / run.PAGE}")
    chosen = beside.choose(Path(model), "auto") if output is None else None
    if chosen is not None and chosen.folder != folder:
        typer.echo(f"--model {model} still answers as it is: {chosen.note or beside.SLOWER}", err=True)
    asked = folder if chosen is None or chosen.folder != folder else model
    typer.echo(f'ask it: minivl ask IMAGE "QUESTION" --model {asked}')


def rows(done: dict[str, Any]) -> Sequence[tuple[str, str, str]]:
    """The figures as a table."""
    same, score = done["agreement"], done["agreement"]["score"]
    return [
        ("files, MB", f"{done['plain_bytes'] / 1e6:,.1f}", f"{done['bytes'] / 1e6:,.1f}"),
        ("features, mean cosine", "1", f"{same['cosine']:.4f}"),
        ("features, worst tile", "1", f"{same['worst_cosine']:.4f}"),
        ("seconds for these pictures", f"{same['seconds']['plain']:.1f}", f"{same['seconds']['quantised']:.1f}"),
        (f"same token, of {same['places']}", "100.0 %", f"{100 * same['tokens']:.1f} %"),
        (
            f"{score['benchmark']}, {score['metric']}, {score['items']} questions",
            f"{score['plain']:.2f}",
            f"{score['quantised']:.2f}",
        ),
    ]
