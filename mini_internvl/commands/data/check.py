"""``minivl data check``: what is wrong with training data, row by row, and a clean copy of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mini_internvl.commands._options import AsJson, Model, echo_json
from mini_internvl.commands.data._rows import (
    MAX_LENGTH,
    MAX_TILES,
    Format,
    MaxLength,
    MaxTiles,
    Paths,
    Workers,
    bar,
    cost_line,
    open_measured,
    processes,
    size_rows,
)

if TYPE_CHECKING:
    from mini_internvl.data.inspection import Finding, TestSet
    from mini_internvl.data.summary import Summary
    from mini_internvl.train.processor import SampleProcessor

EXAMPLE = "minivl data check data/train.jsonl --against data/test.jsonl --fix data/clean.jsonl"
HEADINGS = {
    "error": "cannot be trained on",
    "warning": "can be trained on and is likely wrong",
    "note": "good to know",
}


def command(
    source: Paths,
    against: Annotated[
        list[Path] | None, typer.Option(help="Test data: rows that share images or questions with it are told.")
    ] = None,
    fix: Annotated[Path | None, typer.Option(help="Write a clean copy as jsonl; the source stays as it is.")] = None,
    model: Model = None,
    max_tiles: MaxTiles = MAX_TILES,
    max_length: MaxLength = MAX_LENGTH,
    format: Format = "",
    quick: Annotated[bool, typer.Option("--quick", help="Decode no image: its header and its bytes only.")] = False,
    show: Annotated[int, typer.Option(min=0, help="Rows that are printed of each kind of finding.")] = 10,
    workers: Workers = None,
    json: AsJson = False,
) -> None:
    """Check training data: every finding with its file, row and remedy, and what the rows cost.

    Exit code 1: something is wrong. With --fix, what can be mended without guessing is mended in the copy, the rest is
    left out, and OUT.changes.jsonl tells both.
    """
    from mini_internvl.data.clean import check_apart
    from mini_internvl.data.inspection import NOTE, inspect
    from mini_internvl.data.summary import summarise
    from mini_internvl.train.initial import data_processor

    if fix:
        check_apart(fix, source)
    process, count = data_processor(model, max_tiles=max_tiles, max_length=max_length), processes(workers)
    test = _read_test(against, process, format, count, not quick) if against else None
    rows, odd = open_measured(source, process, format, count)
    if test and test.unread:
        odd.append(f"{len(test.unread):,} rows of the test set cannot be read and are compared with nothing; "
                   f"{test.unread[0].where}: {test.unread[0].message}")  # fmt: skip
    found = inspect(
        rows, measure=process.measure, decode=not quick, test=test, workers=count, on_progress=bar("looking at rows")
    )
    summary = summarise(rows, found.images, process.processor.config.tokens_per_tile)
    wrong = [one for one in found.findings if one.level != NOTE]
    if not json:
        _print(summary, process, found.findings, odd, show)
        typer.echo(_verdict(wrong))
    copy = _write_clean(rows, found.findings, fix) if fix else None
    if json:
        echo_json(_as_json(summary, found.findings, odd, copy))
    elif copy:
        typer.echo(f"{fix}: {copy['rows']:,} rows, {copy['mended']:,} mended, {copy['left_out']:,} left out; "
                   f"which and why: {copy['changes']}")  # fmt: skip
    if wrong:
        raise typer.Exit(1)


def _read_test(paths: Sequence[Path], process: SampleProcessor, format: str, workers: int, decode: bool) -> TestSet:
    from mini_internvl.data.inspection import read_test

    rows, _ = open_measured(paths, process, format, workers)
    return read_test(rows, decode=decode, workers=workers, on_progress=bar("reading the test set"))


def _write_clean(rows: Any, findings: Sequence[Finding], out: Path) -> dict[str, Any]:
    from mini_internvl.data.clean import cleaned, write_changes
    from mini_internvl.data.rows import write_rows

    written, _ = write_rows(cleaned(rows, findings), out)
    changes = out.with_name(f"{out.name}.changes.jsonl")
    mended, left_out = write_changes(findings, changes)
    return {"path": str(out), "rows": written, "mended": mended, "left_out": left_out, "changes": str(changes)}


def _as_json(
    summary: Summary, findings: Iterable[Finding], odd: Sequence[str], copy: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "summary": dataclasses.asdict(summary),
        "findings": [
            {
                **{name: getattr(one, name) for name in ("level", "kind", "place", "message", "fix")},
                "file": str(one.file),
            }
            for one in findings
        ],
        "odd": list(odd),
        "copy": copy,
    }


def _print(
    summary: Summary, process: SampleProcessor, findings: Sequence[Finding], odd: Sequence[str], show: int
) -> None:
    from mini_internvl import terminal
    from mini_internvl.data.summary import COLUMNS

    title = f"{summary.rows:,} rows, {summary.usable:,} can be trained on, {summary.shortened:,} of them shortened"
    terminal.table(title, ["a row has", *COLUMNS], size_rows(summary.spreads))
    typer.echo(cost_line(summary, process))
    for line in odd:
        typer.echo(line)
    kinds = {(one.level, one.kind): 0 for level in HEADINGS for one in findings if one.level == level}
    for level, kind in kinds:
        own = [one for one in findings if (one.level, one.kind) == (level, kind)]
        typer.secho(f"\n{kind}: {len(own):,} {HEADINGS[level]}", bold=True)
        for one in own[:show]:
            typer.echo(f"  {one.where}: {one.message}")
        if len(own) > show:
            typer.echo(f"  and {len(own) - show:,} more (--show {len(own)}, or --json for all)")


def _verdict(wrong: Sequence[Finding]) -> str:
    if not wrong:
        return "nothing is wrong"
    rows = len({(one.file, one.place) for one in wrong})
    return f"\n{len(wrong):,} {'thing is' if len(wrong) == 1 else 'things are'} wrong in {rows:,} rows"
