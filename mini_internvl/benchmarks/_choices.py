"""What the multiple-choice benchmarks share: the prompt, the letter of an answer with or without a judge, the table.

Option texts stay as the file has them. The official scripts read their tables with pandas, which takes the texts
"None", "NA" and "nan" for empty cells: such an option would be left out of the prompt there.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._tally import Judge
from mini_internvl.data import DataError
from mini_internvl.metrics.mathvista import Version
from mini_internvl.metrics.options import NAN, REFUSED, ask_option, infer_option, is_chinese, through_table
from mini_internvl.records import Item

SUFFIX = "Answer with the option's letter from the given choices directly."
SUFFIX_CN = "请直接回答选项字母。"
OPEN_SUFFIX = "Answer the question directly."
OPEN_SUFFIX_CN = "请直接回答问题。"
VERSIONS = {"vlmevalkit-2024-10": "2024-10", "vlmevalkit-head": "head"}  # protocol -> version of option inference
PAPER_VERSIONS: dict[str, Version] = {"paper": "2024-10", "vlmevalkit-head": "head"}  # where the paper used VLMEvalKit


def row_options(row: Mapping[str, str], letters: str = string.ascii_uppercase) -> dict[str, str]:
    """Letter -> text of the options that a row has."""
    return {letter: row[letter] for letter in letters if row.get(letter)}


def choice_prompt(row: Mapping[str, str], options: Mapping[str, str], *, chinese: bool | None = None) -> str:
    """Hint, question, options and the sentence that asks for a letter; without options, for a direct answer.

    Args:
        row: with ``question`` and perhaps ``hint``.
        options: letter -> text.
        chinese: the language of that sentence; ``None`` goes by the text.
    """
    lines = [row["hint"]] if row.get("hint") else []
    lines += [row["question"], *(f"{letter}. {text}" for letter, text in options.items())]
    text = "\n".join(lines)
    chinese = is_chinese(text) if chinese is None else chinese
    suffixes = (SUFFIX, SUFFIX_CN) if options else (OPEN_SUFFIX, OPEN_SUFFIX_CN)
    return f"{text}\n{suffixes[chinese]}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The letter that an answer means."""

    letter: str  # ``"Z"`` for none of the options
    undecided: bool = False  # whether only a judge could tell


def choose(
    item: Item, text: str, *, version: str, judge: Judge | None, options: Mapping[str, str] | None = None
) -> Choice:
    """The letter of one answer as VLMEvalKit finds it: by rules, then by a judge where there is one.

    The question and, unless ``options`` are given, the options are those of the item's reference.

    An answer that its table would turn into "nan" is read so, without the options that pandas would not have read;
    an answer that is the text of an option stays.
    """
    known = options = options or item.reference["options"]
    if text not in options.values() and through_table(text) == NAN:
        text = NAN
        known = {letter: option for letter, option in options.items() if through_table(option) != NAN}
    letter = infer_option(text, known, version=version)
    if letter is None and judge is not None:
        letter = ask_option(item.reference["question"], options, text, judge=judge, version=version)
    return Choice(letter=letter or REFUSED, undecided=letter is None)


def lower_bound(undecided: int, total: int, what: str = "answers") -> str:
    """The sentence for ``Score.partial``: what counts as wrong for want of a judge; empty where nothing does."""
    if not undecided:
        return ""
    return f"{undecided} of {total} {what} need a judge and count as wrong: the accuracy is a lower bound"


def write_xlsx(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """A sheet as the servers take it: numbers, texts, blanks for empty cells; DataError without openpyxl."""
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError:
        raise DataError("openpyxl is needed to write .xlsx: pip install 'mini-internvl[export]'") from None
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not value:
            return None
        made = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value))
        made.data_type = "s"  # a text that begins with "=" is no formula
        return made

    sheet.append(list(columns))
    for row in rows:
        sheet.append([cell(row.get(column)) for column in columns])
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


def export_sheets(asked: Iterable[tuple[Item, str]], folder: str | Path, place: int | None = None) -> list[Path]:
    """A sheet for each file: the cells that ``Item.reference`` keeps as ``sheet``, and the answer as ``prediction``.

    ``place`` is the number of columns before the prediction; ``None`` puts it last.
    """
    sheets: dict[str, list[dict[str, Any]]] = {}
    for item, text in asked:
        cells = {**item.reference["sheet"], "prediction": text}
        cells["index"] = whole_number(cells["index"])
        sheets.setdefault(item.reference["file"], []).append(cells)
    paths = []
    for name, rows in sheets.items():
        columns = [column for column in rows[0] if column != "prediction"]
        columns.insert(len(columns) if place is None else place, "prediction")
        paths.append(write_xlsx(Path(folder) / f"{name}.xlsx", columns, rows))
    return paths


def whole_number(text: str) -> int | str:
    """A table's cell as pandas reads it where the column holds whole numbers."""
    return int(text) if text.lstrip("-").isascii() and text.lstrip("-").isdigit() else text
