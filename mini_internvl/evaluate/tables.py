"""The paper's tables: published rows, and rows of one's own evaluations beneath them.

A table is data: its columns name a benchmark and one of its metrics. What is not comparable with the paper (a part of
the items, another split or protocol, a judge that was missing) gets a footnote, never a silent place beside
a published number. Averages are computed from the columns, for published rows too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl import plugins
from mini_internvl.evaluate.outputs import SCORE, score_paths
from mini_internvl.evaluate.paper_tables import PAPER_TABLES, Column, PaperTable
from mini_internvl.evaluate.published import Published
from mini_internvl.files import FileError, read_object
from mini_internvl.metrics import average

WHOLE = 0.95  # share of the official items from which on a score counts as one on the official data


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """One ``score.json``; texts that it does not say are empty."""

    benchmark: str
    values: Mapping[str, float]
    primary_metric: str
    split: str
    footnotes: tuple[str, ...]  # what keeps it from being compared with the paper, one sentence each
    model: str
    sha256: str
    run: Path
    of: int = 0  # items that the data holds, asked or not; 0 where the score does not say


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a filled table."""

    text: str  # as printed; "-" for none
    value: float | None = None  # unrounded, in the paper's unit
    footnotes: tuple[str, ...] = ()  # letters of its footnotes


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of a filled table."""

    name: str
    cells: tuple[Cell, ...]
    published: bool


@dataclass(frozen=True, kw_only=True)
class Table:
    """A filled table, ready to be printed in any format."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[tuple[str, str], ...]  # (letter, sentence) of the footnotes
    source: str
    remark: str


def read_run(folder: Path) -> list[RunScore]:
    """The scores of a run folder: ``BENCHMARK/score.json``, or deeper by one; ``folder`` may be a benchmark's own.

    ValueError names the folder without a score, or the file that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there; give a folder that minivl eval wrote")
    paths = score_paths(folder)
    if not paths:
        raise ValueError(f"{folder} holds no BENCHMARK/{SCORE}; give a folder that minivl eval wrote")
    return [_read_score(path, folder) for path in paths]


def _read_score(path: Path, run: Path) -> RunScore:
    try:
        raw = read_object(path)
    except FileError as error:
        raise ValueError(f"{str(error).rpartition('; ')[0]}; score the benchmark again") from None
    try:
        model = raw.get("model") or {}
        model = {"name": model} if isinstance(model, str) else model
        primary = raw.get("primary_metric") or ""
        return RunScore(
            benchmark=str(raw["benchmark"]),
            values=_numbers(raw["values"]),
            primary_metric=str(primary.get("name") if isinstance(primary, dict) else primary),
            of=int(raw.get("of") or 0),
            split=str(raw.get("split") or ""),
            footnotes=_missing(raw),
            model=str(model.get("name") or run.name),
            sha256=str(model.get("sha256") or ""),
            run=run,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no score ({type(error).__name__}: {error}); score the benchmark again") from None


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Metrics that are numbers; a score that could not be computed is null or NaN."""
    return {str(name): float(n) for name, n in values.items() if n is not None and math.isfinite(float(n))}


def _missing(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Sentences about what a score lacks, in its own words."""
    found = []
    if raw.get("partial"):
        found.append(" ".join(str(raw["partial"]).split()))
    if raw.get("limit"):
        found.append(f"a part of the benchmark: {raw.get('items', raw['limit'])} items")
    if raw.get("tiles_setting"):
        found.append(f"at most {raw['tiles_setting']} tiles, not the benchmark's own limit")
    if missing := (raw.get("notes") or {}).get("missing"):
        found.append(f"{missing} of {raw.get('items')} items have no answer and count as empty")
    first = _first_protocol(str(raw["benchmark"]))
    if raw.get("protocol") and first and raw["protocol"] != first:
        found.append(f"protocol {raw['protocol']}; the paper's is {first}")
    return tuple(found)


def _first_protocol(benchmark: str) -> str:
    """The paper's protocol of a benchmark; empty for a benchmark that is not known here."""
    if benchmark not in plugins.list_names("benchmarks"):
        return ""
    return next(iter(getattr(plugins.find("benchmarks", benchmark), "PROTOCOLS", {})), "")


def _letters(notes: dict[str, str], sentences: Iterable[str]) -> tuple[str, ...]:
    """The letters of footnotes; ``notes`` (sentence to letter) takes up new ones in the order of their need."""
    return tuple(notes.setdefault(sentence, _letter(len(notes))) for sentence in sentences)


def _letter(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    head, last = divmod(number, 26)
    return (_letter(head - 1) if head else "") + chr(ord("a") + last)


def build(name: str, runs: Sequence[Sequence[RunScore]] = ()) -> list[Table]:
    """The filled tables of one name, a row for each run that has a number for them; ValueError for an unknown name."""
    if name not in PAPER_TABLES:
        raise ValueError(f'there is no table "{name}"; known: {", ".join(PAPER_TABLES)}')
    return [_fill(name, paper_table, runs) for paper_table in PAPER_TABLES[name]]


def _fill(name: str, paper_table: PaperTable, runs: Sequence[Sequence[RunScore]]) -> Table:
    notes: dict[str, str] = {}
    rows = [_published_row(paper_table, row, notes) for row in paper_table.rows]
    sides: list[list[RunScore]] = []
    for scores in runs:  # a row must not hold the metrics of two models
        by_model: dict[tuple[str, str], list[RunScore]] = {}
        for score in scores:
            by_model.setdefault((score.model, score.sha256), []).append(score)
        sides += by_model.values()
    filled = _together([found for side in sides if (found := _place(paper_table, side))])
    firsts = [next(iter(found.values())) for found in filled]
    names = [score.model for score in firsts]
    for score, found in zip(firsts, filled, strict=True):
        label = score.model if names.count(score.model) == 1 else f"{score.model} ({score.run})"
        rows.append(_own_row(paper_table, label, found, notes))
    columns = paper_table.columns
    if paper_table.averaged:
        columns += (Column(label="Avg.", digits=1), Column(label="% of 76B", digits=1))
    return Table(
        name=name,
        title=paper_table.title,
        columns=columns,
        rows=tuple(rows),
        notes=tuple((letter, sentence) for sentence, letter in notes.items()),
        source="; ".join(dict.fromkeys(row.source for row in paper_table.rows)),
        remark=paper_table.remark,
    )


def _place(paper_table: PaperTable, scores: Sequence[RunScore]) -> dict[Column, RunScore]:
    """Which score of a run fills which column: one with the metric and the split before one that says what it lacks.

    Of several the one that has the fewest footnotes is taken, such as that by the paper's protocol.
    """
    found: dict[Column, RunScore] = {}
    for column in paper_table.columns:
        suited = [score for score in scores if score.benchmark == column.benchmark and _rank(column, score)]
        if suited:
            found[column] = max(suited, key=lambda score: (_rank(column, score), -len(score.footnotes)))
    return found


def _rank(column: Column, score: RunScore) -> int:
    """How well a score suits a column of its benchmark; 0 for not at all."""
    fits = not column.splits or score.split in column.splits
    if column.only and not fits:
        return 0
    return 2 + fits if _metric(column, score) is not None else int(bool(score.footnotes))


def _metric(column: Column, score: RunScore) -> float | None:
    return score.values.get(column.metric or score.primary_metric)


def _together(rows: Sequence[dict[Column, RunScore]]) -> list[dict[Column, RunScore]]:
    """Runs of one model share a row as long as no column is filled twice, for instance one run for each split."""
    joined: list[dict[Column, RunScore]] = []
    for row in rows:
        score = next(iter(row.values()))
        for other in joined:
            first = next(iter(other.values()))
            same = score.sha256 and (score.model, score.sha256) == (first.model, first.sha256)
            if same and not other.keys() & row.keys():
                other.update(row)
                break
        else:
            joined.append(dict(row))
    return joined


def _published_row(paper_table: PaperTable, row: Published, notes: dict[str, str]) -> TableRow:
    assert len(row.values) == len(paper_table.columns), f"{paper_table.title}, {row.model}: one value for each column"
    cells = [_cell(column, value) for column, value in zip(paper_table.columns, row.values, strict=True)]
    return TableRow(name=row.model, cells=(*cells, *_averages(paper_table, cells, notes)), published=True)


def _own_row(paper_table: PaperTable, label: str, found: Mapping[Column, RunScore], notes: dict[str, str]) -> TableRow:
    cells = []
    for column in paper_table.columns:
        score = found.get(column)
        if score is None:
            cells.append(_cell(column, None))
            continue
        sentences = list(score.footnotes)
        if column.splits and score.split and score.split not in column.splits:
            sentences.append(f"split {score.split}; the paper's is {column.splits[0]}")
        elif 0 < score.of < WHOLE * column.items:
            sentences.append(f"other data: {score.of:,} items where the official split has {column.items:,}")
        cells.append(_cell(column, _metric(column, score), _letters(notes, sentences)))
    return TableRow(name=label, cells=(*cells, *_averages(paper_table, cells, notes)), published=False)


def _cell(column: Column, value: float | None, footnotes: tuple[str, ...] = ()) -> Cell:
    return Cell(text="-" if value is None else f"{value:.{column.digits}f}", value=value, footnotes=footnotes)


def _averages(paper_table: PaperTable, cells: Sequence[Cell], notes: dict[str, str]) -> list[Cell]:
    """The average of the general benchmarks and its share of the largest model's, with what must be said of them."""
    if not paper_table.averaged:
        return []
    asked = [(c.label, cell) for c, cell in zip(paper_table.columns, cells, strict=True) if c.benchmark]
    known = [cell for _, cell in asked if cell.value is not None]
    mean = average.mini_internvl_average({label: cell.value for label, cell in asked})
    share = None if mean is None else average.share_of_76b(mean)
    sentences = []
    if 0 < len(known) < len(asked):
        sentences.append(f"average of {len(known)} of {len(asked)} benchmarks")
    if any(cell.footnotes for cell in known):
        sentences.append("average with marked scores in it")
    footnotes = _letters(notes, sentences)
    return [_cell(Column(label="", digits=1), mean, footnotes), _cell(Column(label="", digits=1), share, footnotes)]
