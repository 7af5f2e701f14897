"""Filled tables as text, Markdown, CSV, LaTeX or JSON data; names from outside are escaped in each."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from mini_internvl.evaluate.paper_tables import Column
from mini_internvl.evaluate.tables import Cell, Table, TableRow


def _legend(table: Table) -> str:
    return f"published: {table.source}" + (f". {table.remark}" if table.remark else "")


def _plain(text: str) -> str:
    """One line without control characters."""
    return " ".join("".join(" " if unicodedata.category(c).startswith("C") else c for c in text).split())


def _groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Headings above columns, each with how many it spans."""
    return [(name, len(list(group))) for name, group in groupby(columns, key=lambda column: column.group)]


def _full_label(column: Column) -> str:
    return f"{column.group} {column.label}".strip()


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def _pad(text: str, width: int, *, left: bool = False) -> str:
    space = " " * max(0, width - _width(text))
    return text + space if left else space + text


def text(table: Table) -> str:
    """Aligned columns for a terminal, footnotes in brackets."""
    rows = [[_plain(row.name), *_aligned(table, row)] for row in table.rows]
    lines = [["", *(column.label for column in table.columns)], *rows]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(lines[0]))]
    heads, first = [], 1
    for name, span in _groups(table.columns):
        last = first + span - 1
        widths[last] += max(0, _width(name) - sum(widths[first : last + 1]) - 2 * (span - 1))
        heads.append(_pad(name, sum(widths[first : last + 1]) + 2 * (span - 1)))
        first += span
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = ["  ".join([_pad(line[0], widths[0], left=True), *map(_pad, line[1:], widths[1:])]) for line in lines]
    count = 1 + sum(row.published for row in table.rows)
    over = ["  ".join([" " * widths[0], *heads])] if any(head.strip() for head in heads) else []
    own = [rule, *body[count:]] if body[count:] else []
    notes = [f"({letter}) {_plain(sentence)}" for letter, sentence in table.notes]
    out = [table.title, *over, body[0], rule, *body[1:count], *own, *notes, _legend(table)]
    return "\n".join(line.rstrip() for line in out) + "\n"


def _aligned(table: Table, row: TableRow) -> list[str]:
    """A row's cells; a column with footnotes leaves room for them, so that its numbers stand in line."""
    cells = []
    for i, cell in enumerate(row.cells):
        room = max(len(_with_footnotes(other.cells[i], " ({})")) - len(other.cells[i].text) for other in table.rows)
        letter = _with_footnotes(cell, " ({})")[len(cell.text) :]
        cells.append(cell.text + letter.ljust(room))
    return cells


def _with_footnotes(cell: Cell, frame: str) -> str:
    return cell.text + (frame.format(",".join(cell.footnotes)) if cell.footnotes else "")


def markdown(table: Table) -> str:
    """A pipe table with the footnotes beneath."""
    lines = [["Model", *(_markdown(_full_label(column)) for column in table.columns)]]
    lines.append(["---", *("---:" for _ in table.columns)])
    for row in table.rows:
        lines.append([_markdown(row.name), *(_with_footnotes(cell, "<sup>{}</sup>") for cell in row.cells)])
    notes = [f"<sup>{letter}</sup> {_markdown(sentence)}" for letter, sentence in table.notes]
    notes.append(_markdown(_legend(table)))
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"**{_markdown(table.title)}**", "", *body, "", "  \n".join(notes)]) + "\n"


def _markdown(text: str) -> str:
    """Markdown's own signs as plain ones, so that a name can neither leave its cell nor become a link or HTML."""
    text = _plain(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*_\[\]~])", r"\\\1", text)


def _cell_text(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    plain = _plain(text)
    return f"'{plain}" if plain[:1] in "=+-@" else plain


def comma_separated(table: Table) -> str:
    """One line a row: table, model, whether published, the unrounded numbers, the footnotes in words."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "model", "published", *map(_full_label, table.columns), "notes"])
    sentences = dict(table.notes)
    for row in table.rows:
        numbers = ["" if cell.value is None else f"{cell.value:.10g}" for cell in row.cells]
        notes = "; ".join(
            f"{_full_label(column)}: {_plain(sentences[letter])}"
            for column, cell in zip(table.columns, row.cells, strict=True)
            for letter in cell.footnotes
        )
        writer.writerow(
            [table.title, _cell_text(row.name), "yes" if row.published else "no", *numbers, _cell_text(notes)]
        )
    return out.getvalue()


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",  # after a line break these two would be read as its options
    "*": "{*}",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in _plain(text))


def latex(table: Table) -> str:
    """A ``table`` with a label, in the rules of the package booktabs; the widest need a wide page."""
    rules, first = [], 2
    over = [""]
    for name, span in _groups(table.columns):
        over.append(rf"\multicolumn{{{span}}}{{c}}{{{_latex(name)}}}" if span > 1 or name else "")
        if name:
            rules.append(rf"\cmidrule(lr){{{first}-{first + span - 1}}}")
        first += span
    head = [" & ".join(over) + r" \\ " + " ".join(rules)] if rules else []
    lines = [" & ".join(["Model", *(_latex(column.label) for column in table.columns)]) + r" \\ \midrule"]
    own = False
    for row in table.rows:
        if not row.published and not own:
            lines.append(r"\midrule")
            own = True
        cells = [_latex(row.name), *(_with_footnotes(cell, r"\textsuperscript{{{}}}") for cell in row.cells)]
        lines.append(" & ".join(cells) + r" \\")
    notes = [rf"\textsuperscript{{{letter}}} {_latex(sentence)}" for letter, sentence in table.notes]
    notes.append(_latex(_legend(table)))
    label = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    return (
        "\n".join(
            [
                r"% needs \usepackage{booktabs}",
                r"\begin{table}",
                r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
                rf"\caption{{{_latex(table.title)}}}\label{{tab:{label}}}",
                rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
                r"\toprule",
                *head,
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                r"\par\smallskip",
                "\\\\\n".join(notes),
                r"\end{table}",
            ]
        )
        + "\n"
    )


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "text": text,
    "markdown": markdown,
    "csv": comma_separated,
    "latex": latex,
}
"""Name on the command line -> writer."""


def data(table: Table) -> dict[str, Any]:
    """The table as JSON data."""
    labels = [_full_label(column) for column in table.columns]
    return {
        "table": table.name,
        "title": table.title,
        "source": table.source,
        "remark": table.remark,
        "columns": labels,
        "rows": [
            {
                "model": row.name,
                "published": row.published,
                "values": {label: cell.value for label, cell in zip(labels, row.cells, strict=True)},
                "notes": {
                    label: list(cell.footnotes) for label, cell in zip(labels, row.cells, strict=True) if cell.footnotes
                },
            }
            for row in table.rows
        ],
        "notes": dict(table.notes),
    }
