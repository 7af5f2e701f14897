"""Tables with images: read row by row, the images left in the file until they are needed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mini_internvl.benchmarks import drivelm, mathvista, rsvqa_lr
from mini_internvl.benchmarks._example import ExampleImage
from mini_internvl.benchmarks._files import read_tsv
from mini_internvl.data import DataError
from mini_internvl.inputs.images import image_dimensions, load_image
from mini_internvl.inputs.messages import image_parts

MATHVISTA_ROW = {
    "pid": "1",
    "image": "1.jpg",
    "query": "Q",
    "question_type": "free_form",
    "answer_type": "text",
    "answer": "1",
}


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


def test_every_damaged_row_keeps_its_number(tmp_path, rows):
    path = table(tmp_path / "t.tsv", [rows[0], ["1", "q"], rows[1], ["3", "q", "!" * 80, "A"]])
    with pytest.raises(DataError, match=r"row 1: 2 cells, the header has 4; row 3: broken base64") as caught:
        read_tsv(path, ("index",), check=lambda row: [] if row["question"] else ["no question"])
    assert "row 2" not in str(caught.value)
    with pytest.raises(DataError) as caught:
        read_tsv(table(tmp_path / "u.tsv", [rows[0], ["1", "q"]]), ("index",))
    assert "there are no rows" not in str(caught.value)


def test_a_protocols_own_file_counts_wherever_it_lies(tmp_path):
    mathvista.EXAMPLE.write(tmp_path)
    (tmp_path / "mathvista").mkdir()
    (tmp_path / "mathvista" / "testmini.json").write_text(json.dumps({"1": MATHVISTA_ROW}))
    assert len(list(mathvista.items(tmp_path, protocol="paper"))) == len(mathvista.EXAMPLE.good)
    drivelm.EXAMPLE.write(tmp_path)
    (tmp_path / "drivelm").mkdir()
    (tmp_path / "drivelm" / "test_eval.json").write_text("{}")
    assert len(list(drivelm.items(tmp_path))) == len(drivelm.EXAMPLE.good)


def test_an_image_is_taken_from_the_published_folder_and_by_its_whole_name(tmp_path):
    rsvqa_lr.EXAMPLE.write(tmp_path)
    [published] = tmp_path.rglob("0.tif")
    (tmp_path / "0.tif").write_bytes(published.read_bytes())
    [part] = image_parts(next(iter(rsvqa_lr.items(tmp_path))).messages)
    assert part.source == str(published)
    (tmp_path / "mathvista").mkdir()
    (tmp_path / "mathvista" / "testmini.json").write_text(json.dumps({"1": MATHVISTA_ROW | {"image": "images/1.jpg"}}))
    (tmp_path / "1.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"row 1: the image images/1\.jpg is missing"):
        list(mathvista.items(tmp_path / "mathvista", protocol="official"))
