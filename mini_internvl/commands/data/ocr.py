"""``minivl data ocr``: training rows of the text that is read in pictures, and a page to review it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mini_internvl.commands._options import AsJson, echo_json, stoppable
from mini_internvl.commands.data._rows import Workers, processes

if TYPE_CHECKING:
    from mini_internvl.data.ocr.folder import Written

EXAMPLE = "minivl data ocr scans data/ocr --min-confidence 0.8"


def command(
    source: Annotated[
        Path, typer.Argument(help="Folder of pictures, or a Parquet file or WebDataset shard; with --review, OUT.")
    ],
    out: Annotated[Path | None, typer.Argument(help="Folder for texts and rows.")] = None,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Lines that are read with less confidence reach no row.")
    ] = 0.5,
    workers: Workers = None,
    review: Annotated[bool, typer.Option("--review", help="Serve a local page to review what was read.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; a free one when left out.")] = 0,
    ray: Annotated[
        bool, typer.Option("--ray", help="Spread over the Ray cluster of RAY_ADDRESS, or a local one.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Read English and Chinese text in pictures and write questions about it as training rows.

    The same command goes on after a stop, and takes another --min-confidence without reading again. --review serves a
    page on 127.0.0.1 to accept, correct or reject what was read; the rows are written again when it is stopped.
    """
    if review == (out is not None):
        raise typer.BadParameter("give OUT alone with --review" if review else "give the folder OUT for texts and rows")
    if out is None:
        _print(_review(source, port), source, as_json=json)
    else:
        _print(_read(source, out, min_confidence, workers, ray=ray), out, as_json=json)


def _read(source: Path, out: Path, min_confidence: float, workers: int | None, *, ray: bool) -> Written:
    from mini_internvl import terminal
    from mini_internvl.data.ocr import folder, reader
    from mini_internvl.data.ray_workers import ray_map
    from mini_internvl.data.ray_workers import require as require_ray
    from mini_internvl.data.workers import ordered_map

    reader.require()
    if ray:
        require_ray()
    with stoppable() as should_stop:
        written = folder.read_source(
            source,
            out,
            min_confidence=min_confidence,
            workers=workers or 0 if ray else processes(workers),
            mapped=ray_map if ray else ordered_map,
            on_progress=terminal.ProgressBar("reading pictures", unit="pictures"),
            should_stop=should_stop,
        )
    terminal.close()
    return written


def _review(out: Path, port: int) -> Written:
    """Serve the page until Ctrl-C, then write the rows."""
    from mini_internvl.data.ocr import folder
    from mini_internvl.report.review import Server

    folder.settings(out)
    with folder.held(out), Server(out, port) as server:
        typer.echo(f"review {len(server.names):,} pictures at {server.url} (Ctrl-C ends the review)", err=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        return folder.write(out)


def _print(written: Written, out: Path, *, as_json: bool) -> None:
    from mini_internvl.data import LISTED_FAULTS
    from mini_internvl.data.ocr.folder import FAULTS, ROWS

    faults = written.faults
    if as_json:
        counts: dict[str, Any] = {
            name: getattr(written, name) for name in ("rows", "without_text", "rejected", "corrected")
        }
        left_out = [{"file": str(one.file), "place": one.place, "reason": one.reason} for one in faults]
        echo_json({"path": str(out / ROWS), **counts, "left_out": left_out})
        return
    typer.echo(f"{out / ROWS}: {written.rows:,} rows; {written.without_text:,} pictures without text are left out")
    if written.rejected or written.corrected:
        typer.echo(f"reviews: {written.corrected:,} pictures corrected, {written.rejected:,} rejected")
    for fault in faults[:LISTED_FAULTS]:
        typer.echo(f"left out: {fault}", err=True)
    if faults:
        typer.echo(f"{len(faults):,} pictures cannot be used; {out / FAULTS} lists them")
