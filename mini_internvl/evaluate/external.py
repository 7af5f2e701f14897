"""Anyone's answers to a benchmark: a file of another tool, read and matched with the items.

JSON lines, a JSON list of objects, a JSON object of id -> answer, or a table (tsv, csv, xlsx) as VLMEvalKit writes it.
Where a row holds both, prediction or response is taken as the model's; "answer" is then the reference.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.evaluate.run import prediction
from mini_internvl.files import check_file, read_text
from mini_internvl.records import Item, Prediction

IDS = ("id", "question_id", "questionId", "index", "pid", "item_id")
DELIMITERS = {".tsv": "\t", ".csv": ","}
ANSWERS = ("prediction", "predict", "response", "answer", "text")


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Answers that belong to items, and what is left over."""

    predictions: Sequence[Prediction]  # in item order
    missing: Sequence[str]
    unmatched: Sequence[str]  # ids of the answers that name no item, or no single one
    doubled: int  # answers replaced by a later one to the same item


def read(path: Path) -> list[tuple[str, str]]:
    """(id, answer) of every row; ValueError: the file is missing or malformed, with the row."""
    if path.suffix == ".xlsx":
        found = _sheet_rows(path)
    else:
        text = read_text(path, error=ValueError).removeprefix("\ufeff")
        found = _table_rows(path, text) if path.suffix in DELIMITERS else _rows(path, text)
    if not found:
        raise ValueError(f"{path} holds no answers")
    return [_pair(row, f"{path}, row {number}") for number, row in enumerate(found, 1)]


def _table_rows(path: Path, text: str) -> list[Any]:
    csv.field_size_limit(1 << 30)  # a column of images may stand beside the answers
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=DELIMITERS[path.suffix], strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} is no {path.suffix[1:]} table ({error})") from None


def _sheet_rows(path: Path) -> list[Any]:
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise ValueError(f"{path} needs openpyxl; pip install 'mini-internvl[export]'") from None
    check_file(path, error=ValueError)
    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl has no error of its own for a damaged file
        raise ValueError(f"{path} is no xlsx file ({type(error).__name__})") from None
    rows = book.worksheets[0].iter_rows(values_only=True)
    header = next(rows, ())
    return [dict(zip(header, row, strict=False)) for row in rows if any(cell is not None for cell in row)]


def _rows(path: Path, text: str) -> list[Any]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = None
    if isinstance(whole, list):
        return whole
    if isinstance(whole, dict) and not any(key in whole for key in IDS):
        lists = [value for value in whole.values() if isinstance(value, list) and value]
        inner = [value for value in lists if all(isinstance(row, dict) for row in value)]
        if len(inner) == 1:  # a list of rows among settings, as submissions have it
            return inner[0]
        pairs = whole.items()
        return [{**(value if isinstance(value, dict) else {"answer": value}), "id": key} for key, value in pairs]
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no valid JSON ({error.msg}); mend or remove it") from None
    return rows


def _pair(row: Any, where: str) -> tuple[str, str]:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is no object with an id and an answer")
    name = next((row[key] for key in IDS if row.get(key) is not None), None)
    if name is None:
        raise ValueError(f"{where} has no id; name it one of {', '.join(IDS)}")
    key = next((key for key in ANSWERS if key in row), None)
    if key is None:
        raise ValueError(f"{where} has no answer; name it one of {', '.join(ANSWERS)}")
    value = row[key]
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return str(name), text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def match(items: Sequence[Item], answers: Sequence[tuple[str, str]]) -> Matched:
    """Put answers to items: by id, else by the one item whose id ends in it (after a "/"), or that it ends in.

    An id that comes for the second time is that of the item with "#2" behind it, if there is one: so benchmarks number
    questions whose official ids repeat.
    """
    ids = {item.id for item in items}
    by_tail: dict[str, set[str]] = {}
    for item in items:
        for tail in _tails(item.id):
            by_tail.setdefault(tail, set()).add(item.id)
    texts: dict[str, str] = {}
    unmatched, doubled = [], 0
    times: Counter[str] = Counter()
    for name, text in answers:
        times[name] += 1
        numbered = _find(f"{name}#{times[name]}", ids, by_tail) if times[name] > 1 else None
        found = numbered or _find(name, ids, by_tail)
        if found is None:
            unmatched.append(name)
        else:
            doubled += found in texts
            texts[found] = text
    return Matched(
        predictions=[prediction(item, texts[item.id]) for item in items if item.id in texts],
        missing=[item.id for item in items if item.id not in texts],
        unmatched=unmatched,
        doubled=doubled,
    )


def _tails(name: str) -> list[str]:
    """ "a/b/c" -> "b/c", "c"."""
    parts = name.split("/")
    return ["/".join(parts[i:]) for i in range(1, len(parts))]


def _find(name: str, ids: set[str], by_tail: Mapping[str, set[str]]) -> str | None:
    if name in ids:
        return name
    if len(found := by_tail.get(name, set())) == 1:
        return next(iter(found))
    return next((tail for tail in _tails(name) if tail in ids), None)
