"""``minivl data convert``: rows of any file as InternVL jsonl, Parquet or a WebDataset shard."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from mini_internvl.commands._options import AsJson, echo_json
from mini_internvl.commands.data._rows import Format, Workers, bar, processes

EXAMPLE = "minivl data convert data/meta.json data/train.parquet"


class Images(enum.StrEnum):
    """Where images are."""

    AUTO = "auto"
    PATH = "path"
    INSIDE = "inside"


def command(
    source: Annotated[Path, typer.Argument(help="File or folder of rows, or a meta JSON.")],
    out: Annotated[Path, typer.Argument(help="New file: .jsonl, .parquet or .tar (WebDataset).")],
    images: Annotated[
        Images, typer.Option(help="path, or inside the file; auto: inside Parquet and shards.")
    ] = Images.AUTO,
    format: Format = "",
    skip: Annotated[bool, typer.Option("--skip", help="Leave out rows that cannot be used.")] = False,
    workers: Workers = None,
    json: AsJson = False,
) -> None:
    """Write the rows of a source as another kind of file; read again, they are the same rows.

    The file appears whole or not at all, and its bytes do not depend on --workers.
    """
    from mini_internvl import terminal
    from mini_internvl.data import convert

    shown = bar("converting")
    written, faults = convert.convert(
        source,
        out,
        inside=None if images is Images.AUTO else images is Images.INSIDE,
        format=format,
        skip=skip,
        workers=processes(workers),
        on_progress=lambda rows: shown(rows, 0),
    )
    terminal.close()
    if json:
        left_out = [{"file": str(one.file), "place": one.place, "reason": one.reason} for one in faults]
        echo_json({"path": str(out), "rows": written, "left_out": left_out})
        return
    for fault in faults:
        typer.echo(f"left out: {fault}", err=True)
    typer.echo(f"{out}: {written:,} rows")
