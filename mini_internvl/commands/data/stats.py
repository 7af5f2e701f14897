"""``minivl data stats``: lengths, tiles, answers and sources of training data, as a table and a page of charts."""

from __future__ import annotations

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
    import numpy as np

    from mini_internvl.data.statistics import Counts
    from mini_internvl.data.summary import Summary

EXAMPLE = "minivl data stats data/train.jsonl --output stats.html"


def command(
    source: Paths,
    output: Annotated[Path | None, typer.Option(help="Also write a page with charts.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Most frequent answers and sources that are shown.")] = 15,
    model: Model = None,
    max_tiles: MaxTiles = MAX_TILES,
    max_length: MaxLength = MAX_LENGTH,
    format: Format = "",
    workers: Workers = None,
    json: AsJson = False,
) -> None:
    """Show what training data holds: tokens, tiles, turns, answers and sources."""
    import numpy as np

    from mini_internvl import terminal
    from mini_internvl.data import statistics, summary
    from mini_internvl.train.initial import data_processor

    if output:
        from mini_internvl.report.page import require

        require()
    process, count = data_processor(model, max_tiles=max_tiles, max_length=max_length), processes(workers)
    rows, _ = open_measured(source, process, format, count)
    counted = statistics.count_rows(rows, workers=count, on_progress=bar("counting"))
    images = np.split(counted.columns[:, 1], np.cumsum([len(file) for file in rows.files])[:-1])
    found = summary.summarise(rows, images, process.processor.config.tokens_per_tile)
    sizes = np.concatenate([np.asarray(file.sizes) for file in rows.files])
    values = dict(zip(("tokens", "supervised tokens", "tiles"), sizes.T, strict=True))
    values |= dict(zip(statistics.COLUMNS, counted.columns.T, strict=True))
    values = {name: column[sizes[:, 0] > 0] for name, column in values.items()}
    spreads = {name: summary.spread(column) for name, column in values.items()}
    sources, answers = _sources(counted, top), _answers(counted, top)
    if json:
        echo_json(_as_json(found, spreads, counted, top))
    else:
        title = f"{found.rows:,} rows, {found.usable:,} can be trained on, {found.shortened:,} of them shortened"
        terminal.table(title, ["a row has", *summary.COLUMNS], size_rows(spreads))
        typer.echo(cost_line(found, process))
        for name, headers, lines in (
            ("sources", SOURCE_HEADERS, sources),
            ("most frequent answers", ANSWER_HEADERS, answers),
        ):
            if lines:
                terminal.table(name, headers, lines)
    if output:
        facts = [("rows", f"{found.rows:,}"), ("can be trained on", f"{found.usable:,}"), ("model", model or "nano")]
        _write(output, source, [*facts, ("cost", cost_line(found, process))], values, sources, answers)
        if not json:
            typer.echo(output)


SOURCE_HEADERS = ("source", "rows", "of all", "tokens a row", "supervised", "tiles a row")
ANSWER_HEADERS = ("answer", "times", "of all")


def _sources(counted: Counts, top: int) -> list[list[str]]:
    total = sum(counted.sources.values())
    rows = []
    for name, times in counted.sources.most_common(top):
        tokens, supervised, tiles = counted.sizes[name].tolist()
        share = supervised / tokens if tokens else 0.0
        rows.append([name, f"{times:,}", f"{times / total:.1%}", f"{tokens / times:,.0f}", f"{share:.1%}",
                     f"{tiles / times:.1f}"])  # fmt: skip
    return rows


def _answers(counted: Counts, top: int) -> list[list[str]]:
    total = sum(counted.answers.values()) + counted.longer
    shown = [(answer, times) for answer, times in counted.answers.most_common(top) if times > 1]
    rows = [[answer, f"{times:,}", f"{times / total:.1%}"] for answer, times in shown]
    others = total - sum(times for _, times in shown)
    return [*rows, ["all others", f"{others:,}", f"{others / total:.1%}"]] if total else []


def _as_json(found: Summary, spreads: Any, counted: Counts, top: int) -> dict[str, Any]:
    import dataclasses

    sizes = ("tokens", "supervised", "tiles")
    return {
        "summary": {**dataclasses.asdict(found), "spreads": spreads},
        "sources": {
            name: {"rows": times, **dict(zip(sizes, counted.sizes[name].tolist(), strict=True))}
            for name, times in counted.sources.most_common()
        },
        "answers": dict(counted.answers.most_common(top)),
        "different answers": len(counted.answers),
        "long answers": counted.longer,
    }


def _write(
    output: Path,
    source: list[Path],
    facts: list[tuple[str, str]],
    values: dict[str, np.ndarray],
    sources: list[list[str]],
    answers: list[list[str]],
) -> None:
    from mini_internvl.report.statistics import Table, distribution, write_statistics

    charts = [distribution(f"{name.capitalize()} of a row", name, column) for name, column in values.items()]
    tables = [Table("Sources", SOURCE_HEADERS, sources), Table("Most frequent answers", ANSWER_HEADERS, answers)]
    title = ", ".join(path.name or str(path) for path in source)
    write_statistics(output, title=title, facts=facts, charts=[one for one in charts if one], tables=tables)
