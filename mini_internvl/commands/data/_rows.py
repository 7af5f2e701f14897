"""What the commands about rows share: their options, and the source opened as training opens it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mini_internvl.recipes import StageRecipe

if TYPE_CHECKING:
    from mini_internvl.data.sources import RowFiles
    from mini_internvl.data.summary import Spread, Summary
    from mini_internvl.train.processor import SampleProcessor

Paths = Annotated[
    list[Path], typer.Argument(metavar="SOURCE...", help="Files of rows, folders of such files, or a meta JSON.")
]
Format = Annotated[str, typer.Option(help="Format of the rows; left out, each row's keys tell it.")]
MaxTiles = Annotated[int, typer.Option(min=1, help="Tile limit of a sample.")]
MaxLength = Annotated[int, typer.Option(min=1, help="Token limit of a sample.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; as many as there are cores when left out.")]
MAX_TILES, MAX_LENGTH = StageRecipe.max_tiles, StageRecipe.max_length


def processes(asked: int | None) -> int:
    """How many processes work."""
    return asked or os.cpu_count() or 1


def open_measured(
    paths: Sequence[Path], process: SampleProcessor, format: str, workers: int
) -> tuple[RowFiles, list[str]]:
    """The rows through the index that training at the same limits reads, and what is odd in a meta JSON."""
    from mini_internvl import terminal
    from mini_internvl.data.check import Check
    from mini_internvl.data.sources import Opening, open_rows
    from mini_internvl.recipes import SourceRecipe

    first, *more = map(str, paths)
    recipe, checked = SourceRecipe(kind="rows", path=first, format=format), Check()
    counted = bar("reading rows")
    opening = Opening(
        measure=process.measure,
        key=process.fingerprint,
        workers=workers,
        on_progress=lambda rows: counted(rows, 0),
        checked=checked,
    )
    rows = open_rows(recipe, opening, *more)
    terminal.close()
    return rows, checked.warnings()


def bar(title: str) -> Callable[[int, int], None]:
    """Progress on the terminal."""
    from mini_internvl import terminal

    return terminal.ProgressBar(title, unit="rows")


def size_rows(spreads: Mapping[str, Spread]) -> list[list[str]]:
    """A table row for each size of the rows."""
    return [
        [name, *(f"{value:,.1f}" if column == "mean" else f"{value:,.0f}" for column, value in spread.items())]
        for name, spread in spreads.items()
        if spread
    ]


def cost_line(summary: Summary, process: SampleProcessor) -> str:
    """What an image costs, and what share of the tokens is learnt."""
    if not summary.tokens:
        return "no row can be trained on"
    per_tile = process.processor.config.tokens_per_tile
    learnt = f"{summary.supervised / summary.tokens:.1%} of all tokens are supervised"
    if not summary.images:
        return f"no row has an image; {learnt}"
    tiles = summary.tiles_per_image
    return (
        f"an image costs {tiles:.1f} tiles of {per_tile} tokens, {tiles * per_tile:,.0f} tokens, on average; "
        f"{summary.visual / summary.tokens:.1%} of all tokens stand for images, {learnt}"
    )
