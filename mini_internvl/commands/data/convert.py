"""``minivl data convert``: rows of any file, or a domain's records, as InternVL jsonl, Parquet or WebDataset shards."""

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
    source: Annotated[str, typer.Argument(help="File or folder of rows, a meta JSON, or with --data a domain.")],
    out: Annotated[Path, typer.Argument(help="New file: .jsonl, .parquet or .tar (WebDataset).")],
    images: Annotated[
        Images, typer.Option(help="path, or inside the file; auto: inside Parquet and shards.")
    ] = Images.AUTO,
    data: Annotated[Path | None, typer.Option(help="Folder of a domain's raw records.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a domain; its training split when left out.")] = None,
    shard_rows: Annotated[int, typer.Option(min=0, help="Rows of a file; several are written, OUT-000000 and on.")] = 0,
    shard_mb: Annotated[int, typer.Option(min=0, help="Megabytes of rows after which the next file begins.")] = 0,
    format: Format = "",
    skip: Annotated[bool, typer.Option("--skip", help="Leave out rows that cannot be used.")] = False,
    workers: Workers = None,
    json: AsJson = False,
) -> None:
    """Write the rows of a source as another kind of file; read again, they are the same rows.

    A file appears whole or not at all, and its bytes do not depend on --workers. The same command goes on where a run
    was stopped or killed; with another source or other options it starts over.
    """
    from mini_internvl import terminal
    from mini_internvl.data.convert import Settings, convert
    from mini_internvl.data.draft import Shards
    from mini_internvl.domains import load_domain
    from mini_internvl.domains._rows import convert_split

    if data is None and split is not None:
        raise typer.BadParameter("--split is for a domain, whose raw records --data names")
    if data is not None and format:
        raise typer.BadParameter("a domain reads its own files; leave --format out")
    shown = bar("converting")
    inside = None if images is Images.AUTO else images is Images.INSIDE
    settings = Settings(
        shards=Shards(rows=shard_rows, size=shard_mb * 1_000_000),
        skip=skip,
        workers=processes(workers),
        on_progress=lambda rows: shown(rows, 0),
        on_note=lambda line: typer.echo(line, err=True),
    )
    if data is None:
        done = convert(source, out, inside=inside, format=format, settings=settings)
    else:
        domain = load_domain(source)
        done = convert_split(domain, data, split or domain.splits[0], out, inside, settings)
    terminal.close()
    if json:
        left_out = [{"file": str(one.file), "place": one.place, "reason": one.reason} for one in done.faults]
        files = [str(path) for path in done.shards]
        echo_json({"path": str(out), "files": files, "rows": done.rows, "faults": done.faulty, "left_out": left_out})
        return
    for fault in done.faults:
        typer.echo(f"left out: {fault}", err=True)
    if done.faulty > len(done.faults):
        typer.echo(f"left out: {done.faulty - len(done.faults):,} more", err=True)
    where = str(done.shards[0]) + (f" to {done.shards[-1].name}" if len(done.shards) > 1 else "")
    typer.echo(f"{where}: {done.rows:,} rows")
