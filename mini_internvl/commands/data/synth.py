"""``minivl data synth``: draw images with questions and exact answers, as InternVL's meta JSON and jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "minivl data synth words charts --count 1000 --output data/synth"


def command(
    kinds: Annotated[list[str], typer.Argument(help="Kinds of images, or all.")],
    output: Annotated[Path, typer.Option(help="Folder for images and jsonl.")] = Path("data/synth"),
    count: Annotated[int, typer.Option(help="Samples of each kind.")] = 1000,
    seed: Annotated[int, typer.Option(help="Other images for each seed.")] = 0,
    split: Annotated[str, typer.Option(help="train, or test with held-out words, fonts and tables.")] = "train",
) -> None:
    """Draw images with questions and exact answers, as InternVL's meta JSON and jsonl."""
    from mini_internvl import synth as drawing
    from mini_internvl import terminal
    from mini_internvl.data import drawn

    names = [k for k in drawing.KINDS if drawing.missing(k) is None] if kinds == ["all"] else kinds
    counters = {name: terminal.ProgressBar(f"drawing {name}") for name in names}
    meta = drawn.write(
        names,
        count,
        output,
        seed=seed,
        split=split,
        progress=lambda kind, done, total: counters[kind](done, total),
    )
    typer.echo(meta)
