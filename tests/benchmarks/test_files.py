"""Tables with images: read row by row, the images left in the file until they are needed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mini_internvl.benchmarks._example import ExampleImage
from mini_internvl.benchmarks._files import read_tsv
from mini_internvl.data import DataError
from mini_internvl.inputs.images import image_dimensions, load_image


def table(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    return path


@pytest.fixture
def rows() -> list[list[str]]:
    images = [ExampleImage(width=30 + n, height=20, seed=n).base64() for n in range(3)]
    return [
        ["index", "question", "image", "answer"],
        ["1", 'two\nlines, a "quote" and 中文', images[0], "A"],
        ["2", "None", f"['{images[1]}', '{images[2]}']", "NA"],
        ["3", "", "1", ""],
    ]


def test_images_are_found_again_behind_line_breaks_and_wide_characters(tmp_path, rows):
    path = table(tmp_path / "t.tsv", rows)
    read = read_tsv(path, ("index", "image"))
    assert [row["question"] for row in read] == ['two\nlines, a "quote" and 中文', "None", ""]
    assert read[1]["answer"] == "NA"
    found = [row["image"] for row in read]
    assert [[load_image(image).width for image in images] for images in found] == [[30], [31, 32], [30]]
    assert found[1][1].read() == ExampleImage(width=32, height=20, seed=2).png()
    assert image_dimensions(found[0][0]) == (30, 20)


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path, rows):
    path = table(tmp_path / "t.tsv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    read = read_tsv(path, ("index", "image"))
    assert read[0]["image"][0].read().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["1", "q", "!!", "A"], "row 1: broken base64"),
        (["1", "q", "?" * 90, "A"], "row 1: broken base64"),
        (["1", "q", "aaaa" * 30, "A"], "row 1: the base64 is no image"),
        (["1", "q", " ", "A"], "row 1: no image"),
        (["1", "q"], "row 1: 2 cells, the header has 4"),
    ],
)
def test_damage_is_named_by_row(tmp_path, rows, row, message):
    path = table(tmp_path / "t.tsv", [rows[0], row])
    with pytest.raises(DataError, match=rf"t\.tsv: {message}"):
        read_tsv(path, ("index",))


def test_what_is_no_table_is_refused(tmp_path, rows):
    path = table(tmp_path / "t.tsv", rows)
    with pytest.raises(DataError, match="the header has no column hint"):
        read_tsv(path, ("index", "hint"))
    path.write_bytes(b"index\timage\n\xff\xfe\t\n")
    with pytest.raises(DataError, match=r"t\.tsv: row 1: not valid UTF-8"):
        read_tsv(path, ("index",))
