"""Answers of other tools: the forms they come in, and how they find their items."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mini_internvl import plugins
from mini_internvl.evaluate.external import match, read
from mini_internvl.records import Item, Prediction


def items(*ids: str) -> list[Item]:
    return [Item(id=name, messages=[{"role": "user", "content": "?"}], reference={}) for name in ids]


@pytest.mark.parametrize(
    "content",
    [
        '{"id": "a", "answer": "1"}\n\n{"id": "b", "answer": "2"}\n',
        '\ufeff[{"question_id": "a", "answer": 1}, {"question_id": "b", "answer": "2"}]',
        '{"questionId": "a", "response": "1"}\n{"questionId": "b", "response": "2"}',
        '[{"pid": "a", "answer": "the truth", "prediction": "1"}, {"pid": "b", "answer": "x", "prediction": "2"}]',
        '[{"index": "a", "text": "1"}, {"index": "b", "text": "2"}]',
        '[{"item_id": "a", "predict": "1"}, {"item_id": "b", "predict": "2"}]',
        '{"a": "1", "b": "2"}',
        '{"a": {"response": "1", "answer": "gold"}, "b": {"response": "2"}}',
        '{"method": "mine", "results": [{"id": "a", "answer": "1"}, {"id": "b", "answer": "2"}]}',
        '{"authors": [""], "tags": [], "results": [{"id": "a", "answer": 1}, {"id": "b", "answer": "2"}]}',
    ],
)
def test_forms(tmp_path: Path, content: str) -> None:
    path = tmp_path / "answers.json"
    path.write_text(content, encoding="utf-8")
    assert read(path) == [("a", "1"), ("b", "2")]


@pytest.mark.parametrize(("suffix", "sign"), [(".tsv", "\t"), (".csv", ",")])
def test_tables_as_vlmevalkit_writes_them(tmp_path: Path, suffix: str, sign: str) -> None:
    path = tmp_path / f"answers{suffix}"
    rows = [
        ["index", "image", "answer", "prediction"],
        ["a", "x" * 200_000, "gold", '"1, or\n2"'],
        ["b", "y", "x", "2"],
    ]
    path.write_text("\n".join(sign.join(row) for row in rows) + "\n", encoding="utf-8-sig")
    assert read(path) == [("a", "1, or\n2"), ("b", "2")]


def test_a_workbook_as_vlmevalkit_writes_it(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["index", "answer", "prediction"], [1, "gold", "A"], [2, "gold", None]):
        book.active.append(row)
    path = tmp_path / "answers.xlsx"
    book.save(path)
    assert read(path) == [("1", "A"), ("2", "")]
    book.active.append([" ", None, None])
    book.active.delete_rows(4)
    book.active.cell(6, 1).number_format = "0.00"  # touched, and empty
    book.save(path)
    assert read(path) == [("1", "A"), ("2", "")]
    openpyxl.Workbook().save(path)
    with pytest.raises(ValueError, match=r"answers\.xlsx holds no answers"):
        read(path)
    path.write_bytes(b"no workbook")
    with pytest.raises(ValueError, match=r"answers\.xlsx is no xlsx file"):
        read(path)


def test_odd_values_become_text(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    rows = [{"id": 7, "answer": None}, {"id": 8, "answer": ["x", 1]}, {"id": 0, "answer": "\ud83d"}]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert read(path) == [("7", ""), ("8", '["x", 1]'), ("0", "\ufffd")]
    path.write_text(json.dumps(rows[0]), encoding="utf-8")  # one line alone is a row, not a table of ids
    assert read(path) == [("7", "")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "a", "answer": "1"}\n{', "line 2: no valid JSON"),
        ('[{"answer": "1"}]', "row 1 has no id"),
        ('[{"id": "a"}]', "row 1 has no answer"),
        ("[3]", "row 1 is no object"),
        ("\n", "holds no answers"),
        ("[]", "holds no answers"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "answers.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read(path)
    with pytest.raises(ValueError, match=r"nothing\.json is missing"):
        read(tmp_path / "nothing.json")


def test_matching() -> None:
    asked = items("human/1", "human/2", "augmented/1", "x/y/3", "4")
    found = match(
        asked, [("human/1", "a"), ("2", "b"), ("1", "c"), ("y/3", "d"), ("val/4", "e"), ("5", "f"), ("4", "g")]
    )
    assert {p.item_id: p.text for p in found.predictions} == {"human/1": "a", "human/2": "b", "x/y/3": "d", "4": "g"}
    assert found.unmatched == ["1", "5"]  # "1" ends two ids
    assert found.missing == ["augmented/1"]
    assert found.doubled == 1


def test_ids_that_repeat_in_the_official_file(tmp_path: Path) -> None:
    asked = items("0", "0#2", "x/0", "human/7", "human/7#2")
    found = match(asked, [("0", "a"), ("human/7", "b"), ("0", "c"), ("7", "late"), ("human/7", "d"), ("0", "again")])
    assert [(p.item_id, p.text) for p in found.predictions] == [
        ("0", "again"),
        ("0#2", "c"),
        ("human/7", "late"),
        ("human/7#2", "d"),
    ]
    assert (found.missing, found.doubled) == (["x/0"], 2)


def test_an_exported_submission_is_scored_again(tmp_path: Path) -> None:
    drivelm = plugins.find("benchmarks", "drivelm")
    asked = list(drivelm.items(drivelm.EXAMPLE.write(tmp_path)))
    given = [Prediction(item_id=item.id, text=text) for item, text in zip(asked, drivelm.EXAMPLE.good, strict=True)]
    for path in drivelm.export(asked, given, tmp_path / "export"):
        assert match(asked, read(path)).missing == [], path
