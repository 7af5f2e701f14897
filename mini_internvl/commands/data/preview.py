"""``minivl data preview``: rows as a model reads them, on one HTML page."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mini_internvl.commands._options import Model
from mini_internvl.commands.data._rows import (
    MAX_LENGTH,
    MAX_TILES,
    Format,
    MaxLength,
    MaxTiles,
    Paths,
    Workers,
    open_measured,
    processes,
)

if TYPE_CHECKING:
    from mini_internvl.data import Fault
    from mini_internvl.data.sources import RowFiles
    from mini_internvl.records import Sample

EXAMPLE = "minivl data preview data/train.jsonl -n 20 --model OpenGVLab/InternVL2-1B"


def command(
    source: Paths,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Rows that are shown.")] = 20,
    seed: Annotated[int | None, typer.Option(help="Random rows; spread evenly when left out.")] = None,
    output: Annotated[Path, typer.Option(help="The page.")] = Path("preview.html"),
    model: Model = None,
    max_tiles: MaxTiles = MAX_TILES,
    max_length: MaxLength = MAX_LENGTH,
    format: Format = "",
    workers: Workers = None,
) -> None:
    """Show rows as a model reads them: images with tiles and boxes, the prompt, which tokens are learnt."""
    from mini_internvl.report.page import require
    from mini_internvl.report.preview import write_preview
    from mini_internvl.train.initial import data_processor

    require()
    process = data_processor(model, max_tiles=max_tiles, max_length=max_length)
    rows, _ = open_measured(source, process, format, processes(workers))
    title = ", ".join(path.name or str(path) for path in source)
    typer.echo(write_preview(_chosen(rows, count, seed), process, output, title=title, model=model or "nano"))


def _chosen(rows: RowFiles, count: int, seed: int | None) -> list[Sample | Fault]:
    total = sum(map(len, rows.files))
    count = min(count, total)
    if seed is not None:
        chosen = sorted(random.Random(seed).sample(range(total), count))
    else:
        chosen = [number * total // count for number in range(count)]
    return [rows.sample(*rows.locate(number)) for number in chosen]
