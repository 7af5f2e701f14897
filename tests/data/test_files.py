"""Files of rows: every kind gives the same rows from the beginning and by number, and names what is damaged."""

from __future__ import annotations

import csv
import io
import json
import tarfile

import pytest

from mini_internvl.data import DataError, Fault, Row, containers
from mini_internvl.data.files import open_container, scan

ROWS = [
    {"id": "a", "t": 'q"x\\', "n": 3},
    {"t": "},[\\\\", "l": [1, {"k": "]"}]},
    {"id": 7, "t": "é\n中文" * 9, "n": None},
]


def write(folder, kind):
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).replace("\n", "\n\n", 1))
    elif kind == "json":
        path.write_text("\n" + json.dumps(ROWS, indent=1, ensure_ascii=False) + "\n")
    elif kind == "tsv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([["id", "t"], *([row.get("id", ""), row["t"]] for row in ROWS)])
    elif kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        table = pyarrow.table({"id": [str(row.get("id")) for row in ROWS], "t": [row["t"] for row in ROWS]})
        parquet.write_table(table, path, row_group_size=2)
    else:
        with tarfile.open(path, "w") as tar:
            for number, row in enumerate(ROWS):
                for name, content in ((f"s/{number}.jpg", b"jpeg"), (f"s/{number}.json", json.dumps(row).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "tsv", "parquet", "tar"])
def test_rows_are_the_same_in_order_and_by_number(tmp_path, kind):
    path = write(tmp_path, kind)
    scanned = list(scan(path))
    assert [row.raw["t"] for row in scanned] == [row["t"] for row in ROWS]
    container = open_container(path)
    places = list(container.places())
    assert [container.parse(container.read(start, size), number) for start, size, number in reversed(places)] == [
        *reversed(scanned)
    ]
    assert [container.parse(one, place[2]) for one, place in zip(container.contents(places), places, strict=True)] == (
        scanned
    )
    assert [place for batch in container.batches(1, 99) for place in batch] == places
    assert scanned[0].id == "a"


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 50])
def test_a_list_is_cut_right_wherever_its_chunks_end(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(containers, "_CHUNK", chunk)
    assert [row.raw for row in scan(write(tmp_path, "json"))] == ROWS


def test_images_of_a_shard_stand_in_their_rows(tmp_path):
    row = next(scan(write(tmp_path, "tar")))
    assert row.raw["image"] == [b"jpeg"]


def test_a_batch_of_parquet_is_of_one_group(tmp_path):
    batches = open_container(write(tmp_path, "parquet")).batches(9, 99)
    assert [[number for *_, number in batch] for batch in batches] == [[1, 2], [3]]


def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path):
    for kind in ("jsonl", "json", "tsv"):
        path = write(tmp_path, kind)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().lstrip())
        assert [row.raw["t"] for row in scan(path)] == [row["t"] for row in ROWS]
        container = open_container(path)
        start, size, number = next(container.places())
        assert container.parse(container.read(start, size), number).raw["t"] == ROWS[0]["t"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not valid JSON (Expecting property name enclosed in double quotes at column"),
        (b"[1]", "not an object with named fields"),
        (b'{"a": "\xff"}', "not valid UTF-8 (invalid start byte at byte 8)"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON (a number has too many digits)"),
        (b'{"a": ' + b"[" * 99999 + b"]" * 99999 + b"}", "not valid JSON (lists or objects nested too deep)"),
        (b'{"a": "nice \\ud83d"}', "a text holds half a character"),
        (b'{"a": "\xed\xa0\xbd"}', "not valid UTF-8"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "the row has more than 1,000 bytes"),
    ],
)
def test_every_fault_of_a_row_is_named_with_its_line_and_the_rest_is_read(tmp_path, monkeypatch, line, reason):
    if len(line) < 4000:
        monkeypatch.setattr(containers, "MAX_ROW_BYTES", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    first, fault, last = scan(path)
    assert isinstance(fault, Fault)
    assert str(fault).startswith(f"{path}:2: {reason}")
    assert (first.raw, last.raw) == ({"a": 1}, {"a": 3})
    assert isinstance(last, Row)
    if line == b"{":  # opens an object that never ends
        return
    path.write_bytes(b'[{"a": 1},\n' + line + b',\n{"a": 3}]\n')
    first, fault, last = scan(path)
    assert str(fault).startswith(f"{path}: row 2: {reason.split(' (inv')[0]}")
    assert (first.raw, last.raw) == ({"a": 1}, {"a": 3})


def test_a_row_that_is_no_row_of_its_table_is_a_fault(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"a\tb\n1\t2\n1\t2\t3\n\xff\t2\n")
    assert [str(row).partition(": row ")[2] for row in scan(path) if isinstance(row, Fault)] == [
        "2: 3 cells, the header has 2",
        "3: not valid UTF-8 (invalid start byte); save it as UTF-8",
    ]


@pytest.mark.parametrize("text", ['[{"a": 1}', '[{"a": 1}, {"a": "b]', '[{"a": 1},]'])
def test_a_list_that_is_cut_off_ends_with_a_fault(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert isinstance(list(scan(path))[-1], Fault)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"\x1f\x8b\x08\x00", r"a\.jsonl is compressed; unpack it first \(gzip -d\)"),
        ("a.parquet", b"PAR1 is not all", r"a\.parquet is no Parquet file"),
        ("a.tar", b"no tar", r"a\.tar is no tar file"),
        ("missing.jsonl", None, r"missing\.jsonl is missing"),
    ],
)
def test_files_that_cannot_be_read_at_all_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(scan(tmp_path / name))


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 20])
def test_a_list_under_a_key_gives_its_rows_and_nothing_else(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(containers, "_CHUNK", chunk)
    rows = [{"id": 1, "a": "]},{", "b": [{"id": 9}]}, {"id": 2}, {"id": 3, "c": {"rows": [{"id": 8}]}}]
    held = {"rows ": [{"id": 7}], "x": {"rows": [{"id": 6}]}, "y": '"rows": [', "rows": rows, "z": [{"id": 5}]}
    path = tmp_path / "a.json"
    for indent in (None, 2):
        path.write_text(json.dumps(held, indent=indent), encoding="utf-8-sig")
        assert [dict(row.raw) for row in scan(path, "rows")] == rows
        assert [row.place for row in scan(path, "rows")] == ["row 1", "row 2", "row 3"]
    path.write_text('{"rows": []}')
    assert list(scan(path, "rows")) == []
    for text in ('{"rows": {"rows": [{"id": 1}]}}', '[{"rows": [1]}]', "[]", "", '"rows": [1]'):
        path.write_text(text)
        with pytest.raises(DataError, match="must hold a list under 'rows'"):
            list(scan(path, "rows"))


def test_numbers_of_classes_in_parquet_are_read_as_their_names(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pyarrow.table({"image": ["a.png", "b.png", "c.png"], "label": [1, 0, -1]})
    described = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(described, tmp_path / "a.parquet")
    assert [row.raw["label"] for row in scan(tmp_path / "a.parquet")] == ["dog", "cat", -1]
    parquet.write_table(table.replace_schema_metadata({"huggingface": "[]"}), tmp_path / "b.parquet")
    assert [row.raw["label"] for row in scan(tmp_path / "b.parquet")] == [1, 0, -1]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", [",", "\t"])
def test_a_table_in_utf_16_is_read_by_its_mark(tmp_path, encoding, mark):
    """As Excel writes "Unicode text"; some characters hold the bytes of a line feed."""
    path = tmp_path / "rows.csv"
    rows = [["id", "t"], ["1", "Größe \u0a0d\u0d0a\u010a\u0a05"], ["2", "two\nlines"], ["3", "\U0001f600"]]
    with io.StringIO(newline="") as text:
        csv.writer(text, delimiter=mark).writerows(rows)
        path.write_bytes(("\ufeff" + text.getvalue()).encode(encoding))
    found = list(scan(path))
    assert [row.raw for row in found] == [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    container = open_container(path)
    spans = list(container.places())
    assert [container.parse(data, 1).raw["t"] for data in container.contents(spans)] == [row[1] for row in rows[1:]]
    path.write_bytes(path.read_bytes()[:-3])
    assert isinstance(list(scan(path))[-1], Fault)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_csv_file_may_have_the_delimiter_of_any_spreadsheet(tmp_path, mark):
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=mark).writerows([["id", "t"], ["1", "a, b; c\td"], ["2", "two\nlines"]])
    assert [row.raw for row in scan(path)] == [{"id": "1", "t": "a, b; c\td"}, {"id": "2", "t": "two\nlines"}]


def test_a_column_that_is_named_twice_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,t,t,,\n1,a,b,,\n")
    (fault,) = scan(path)
    assert "the header names t more than once" in fault.reason
