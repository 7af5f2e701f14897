"""What the multiple-choice benchmarks share: the prompt, the letter of an answer with or without a judge, the table.

Option texts stay as the file has them. The official scripts read their tables with pandas, which takes the texts
"None", "NA" and "nan" for empty cells: such an option would be left out of the prompt there.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.data import DataError
from mini_internvl.metrics.options import NAN, REFUSED, ask_option, infer_option, is_chinese, through_table
from mini_internvl.records import Item, Part

Judge = Callable[..., str]

SUFFIX = "Answer with the option's letter from the given choices directly."
SUFFIX_CN = "请直接回答选项字母。"
OPEN_SUFFIX = "Answer the question directly."
OPEN_SUFFIX_CN = "请直接回答问题。"
VERSIONS = {"vlmevalkit-2024-10": "2024-10", "vlmevalkit-head": "head"}
"""Protocol -> version of option inference."""


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


def user_message(images: Iterable[Part], text: str) -> list[Any]:
    """One question with its images before the text."""
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The letter that an answer means."""

    letter: str
    """``"Z"`` for none of the options."""
    undecided: bool = False
    """Whether only a judge could tell."""


def choose(question: str, options: Mapping[str, str], text: str, *, version: str, judge: Judge | None) -> Choice:
    """The letter of one answer as VLMEvalKit finds it: by rules, then by a judge where there is one.

    An answer that its table would turn into "nan" is read so, without the options that pandas would not have read;
    an answer that is the text of an option stays.
    """
    known = options
    if text not in options.values() and through_table(text) == NAN:
        text = NAN
        known = {letter: option for letter, option in options.items() if through_table(option) != NAN}
    letter = infer_option(text, known, version=version)
    if letter is None and judge is not None:
        letter = ask_option(question, options, text, judge=judge, version=version)
    return Choice(letter=letter or REFUSED, undecided=letter is None)


def open_rules(undecided: int, total: int, what: str = "answers") -> str:
    """The sentence for ``Score.partial``: what counts as wrong for want of a judge; empty where nothing does."""
    if not undecided:
        return ""
    return f"{undecided} of {total} {what} need a judge and count as wrong: the accuracy is a lower bound"


def write_xlsx(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """A sheet with a header, as the servers take it: numbers as numbers, all else as text, empty cells left blank.

    Raises:
        DataError: openpyxl is not installed.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError:
        raise DataError("openpyxl is needed to write .xlsx: pip install 'mini-internvl[export]'") from None
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(list(columns))
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column)
            if isinstance(value, str):
                cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value))
                cell.data_type = "s"  # a text that begins with "=" is no formula
                cells.append(cell if value else None)
            else:
                cells.append(value)
        sheet.append(cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


def whole_number(text: str) -> int | str:
    """A table's cell as pandas reads it where the column holds whole numbers."""
    return int(text) if text.lstrip("-").isascii() and text.lstrip("-").isdigit() else text


def options_of(item: Item) -> dict[str, str]:
    """The options that an item's reference keeps."""
    return dict(item.reference["options"])
