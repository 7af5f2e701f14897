"""What training reads: orders, checks before the start, meta JSON, folders, domains."""

from __future__ import annotations

import json
import pickle

import pytest
from PIL import Image

from mini_internvl.data import DataError, formats
from mini_internvl.data.sources import open_source
from mini_internvl.recipes import RecipeError, SourceRecipe


def row(number, question="Q?", answer="A.", **more):
    return {
        "id": number,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        **more,
    }


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def source(path, seed=0, check=None, **settings):
    return open_source(SourceRecipe(kind="rows", path=str(path), **settings), check).with_seed(seed)


def test_each_pass_is_another_order_of_all_rows(tmp_path):
    path = write(tmp_path / "r.jsonl", [row(i) for i in range(10)])
    opened = source(path, 3)
    passes = [[opened[turn * 10 + i].id for i in range(10)] for turn in range(3)]
    assert all(sorted(order, key=int) == [str(i) for i in range(10)] for order in passes)
    assert len({tuple(order) for order in passes}) == 3
    assert source(path, 3)[17].id == passes[1][7]  # needs no replay
    assert [source(path, 4)[i].id for i in range(10)] != passes[0]
    assert len(opened) == 10
    assert pickle.loads(pickle.dumps(opened))[17].id == passes[1][7]  # as workers that are not forked get it
    assert [opened.with_seed(4)[i].id for i in range(10)] == [source(path, 4)[i].id for i in range(10)]


def test_rows_of_one_parquet_group_come_one_after_the_other(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [row(i) for i in range(40)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet", row_group_size=10)
    opened = source(tmp_path)
    ids = [int(opened[i].id) for i in range(40)]
    assert sorted(ids) == list(range(40))
    assert ids != sorted(ids)
    assert [len({i // 10 for i in ids[start : start + 10]}) for start in (0, 10, 20, 30)] == [1, 1, 1, 1]


def test_every_bad_row_is_listed_before_the_start(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    rows = [
        row(0),
        row(1, image="a.png"),
        row(2, image="b.png"),
        row(3, answer=""),
        {"id": 4},
        row(5, answer="<image>"),
    ]
    path = write(tmp_path / "r.jsonl", [*rows, *[{"id": 9}] * 20])
    with pytest.raises(DataError) as error:
        source(path)
    message = str(error.value)
    assert message.startswith(f"{path}:3: the image {tmp_path / 'b.png'} is missing; check the path; line 4: turn 2")
    assert "line 5: no format reads a row with the keys id" in message
    assert "line 6: turn 2 is an answer and holds an image" in message
    assert message.endswith("and 16 more; mend the rows or take them out")


def test_an_image_that_is_put_in_its_place_is_found(tmp_path):
    path = write(tmp_path / "r.jsonl", [row(0, image="late.png")])
    with pytest.raises(DataError, match=r"late\.png is missing"):
        source(path)
    Image.new("RGB", (9, 9)).save(tmp_path / "late.png")
    assert len(source(path)) == 1


@pytest.mark.parametrize("kind", ["fifo", "folder", "web"])
def test_what_is_no_image_file_is_found_without_opening_it(tmp_path, kind):
    import os

    name = "https://x/a.png" if kind == "web" else "a.png"
    if kind == "fifo":
        os.mkfifo(tmp_path / "a.png")
    elif kind == "folder":
        (tmp_path / "a.png").mkdir()
    with pytest.raises(DataError, match=r"r\.jsonl:1: .*a\.png is (missing|a web address)"):
        source(write(tmp_path / "r.jsonl", [row(1, image=name)]))


def test_a_row_without_an_answer_is_refused(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"conversations": [{"from": "human", "value": "Q"}]}])
    with pytest.raises(DataError, match=r"r\.jsonl:1: there is no answer to learn"):
        source(path)


def test_a_check_of_the_callers_counts_too(tmp_path):
    def check(sample):
        raise ValueError(f"no {sample.id} today")

    with pytest.raises(DataError, match=r"r\.jsonl:1: no 7 today"):
        source(write(tmp_path / "r.jsonl", [row(7)]), check=check)


def test_odd_rows_are_counted_with_their_first_place(tmp_path):
    asks = [{"from": "human", "value": "And?"}]
    rows = [
        row(1, answer="  "),
        row(2, answer="[[5000, 1, 2, 3]]"),
        row(3, mood="x"),
        row(4, mood="y"),
        row(5, width=3),
    ]
    rows[0]["conversations"] += asks
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    path = write(tmp_path / "r.jsonl", [*rows, row(6, question="<image>", image="a.png")])
    assert source(path).warnings == [
        f"{path}:1: an answer holds only spaces",
        f"{path}:1: the last question has no answer, so nothing is learnt from it",
        f"{path}:2: a box has a coordinate above 1000; boxes are written in thousandths of the image's sides",
        f'{path}:3 and 1 more: the key "mood" is not read',
        f"{path}:6: a question holds no text",
    ]


def test_a_meta_file_names_its_files_and_how_they_are_read(tmp_path):
    (tmp_path / "img").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "img/a.png")
    write(tmp_path / "a.jsonl", [row(f"a{i}", image="a.png") for i in range(4)])
    write(tmp_path / "b.jsonl", [row("b", max_tiles=9)])
    meta = {
        "first": {"root": "img", "annotation": "a.jsonl", "repeat_time": 0.5, "max_dynamic_patch": 3,
                  "data_augment": True, "length": 4, "mood": 1},
        "second": {"root": "", "annotation": str(tmp_path / "b.jsonl"), "repeat_time": 2, "max_dynamic_patch": 3},
    }  # fmt: skip
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(meta, indent=1))
    opened = source(path)
    assert len(opened) == 4
    samples = [opened[i] for i in range(4)]
    assert sorted(sample.id for sample in samples) == ["a0", "a1", "b", "b"]
    assert {sample.source: sample.max_tiles for sample in samples} == {"first": 3, "second": 9}
    first = next(sample for sample in samples if sample.source == "first")
    assert first.messages[0]["content"][0]["image"] == str(tmp_path / "img/a.png")
    assert opened.warnings == [
        f"{path}, first: mood is not read",
        f"{path}, first: data_augment is not read; images are taken as they are",
    ]
    before = opened.fingerprint
    path.write_text(json.dumps({**meta, "second": {**meta["second"], "repeat_time": 3}}))
    assert source(path).fingerprint != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeat_time": 1.5}, "repeat_time is 1.5; above 1 it must be a whole number"),
        ({"repeat_time": "2"}, "repeat_time is '2'; it must be a number above 0"),
        ({"repeat_time": 0.1}, "repeat_time 0.1 leaves none of 1 rows"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch is 0"),
        ({"annotation": "none.jsonl"}, r"one: none\.jsonl is missing"),
    ],
)
def test_a_meta_file_that_cannot_be_right_is_told(tmp_path, change, message):
    write(tmp_path / "a.jsonl", [row(1)])
    (tmp_path / "meta.json").write_text(json.dumps({"one": {"annotation": "a.jsonl", **change}}))
    with pytest.raises(DataError, match=message):
        source(tmp_path / "meta.json")


def test_a_changed_file_has_another_fingerprint(tmp_path):
    path = write(tmp_path / "r.jsonl", [row(1), row(2)])
    before = source(path).fingerprint
    assert source(path).fingerprint == before
    assert source(path, independent=True).fingerprint != before
    write(path, [row(1), row(3)])
    assert source(path).fingerprint != before


def test_missing_empty_and_unknown_sources_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl is missing"):
        source(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl holds no samples"):
        source(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r'unknown synth kind "shape"; known: .*shapes'):
        open_source(SourceRecipe(kind="synth", name="shape"))
    with pytest.raises(ValueError, match='called "driving"'):
        open_source(SourceRecipe(kind="domain", name="driving", path=str(tmp_path)))


def test_a_format_may_be_named_and_then_holds_for_all_rows(tmp_path):
    path = write(tmp_path / "r.jsonl", [row(1)])
    assert source(path, format="internvl")[0].id == "1"
    assert open_source(SourceRecipe(kind="internvl", path=str(path)))[0].id == "1"
    with pytest.raises(DataError, match=r"r\.jsonl:1: "):
        source(path, format="messages")
    with pytest.raises(RecipeError, match=r'no data\.formats plug-in is called "web"; known: columns, internvl'):
        SourceRecipe(kind="web", path=str(path))
    assert "messages" in str(formats.find(("messages",)))


DOMAIN = """
from PIL import Image
from mini_internvl.data import Fault
from mini_internvl.records import Sample
SPLITS = ("train",)
def convert(raw, split):
    for number, line in enumerate((raw / "notes.txt").read_text().splitlines(), 1):
        if line == "bad":
            yield Fault(file=raw / "notes.txt", place=f"line {number}", reason="no note")
        else:
            shown = [{"type": "image", "image": Image.new("RGB", (9, 9))}, {"type": "text", "text": f"{split}?"}]
            messages = [{"role": "user", "content": shown}, {"role": "assistant", "content": line}]
            yield Sample(id=str(number), messages=messages, source="notes")
"""


def test_a_domain_of_ones_own_is_a_source(tmp_path):
    (tmp_path / "notes.py").write_text(DOMAIN)
    (tmp_path / "notes.txt").write_text("one\ntwo")
    recipe = SourceRecipe(kind="domain", name=str(tmp_path / "notes.py"), path=str(tmp_path))
    opened = open_source(recipe)
    assert sorted(opened[i].messages[1]["content"] for i in range(2)) == ["one", "two"]
    assert open_source(recipe).fingerprint == opened.fingerprint
    (tmp_path / "notes.txt").write_text("one\nbad\nbad")
    with pytest.raises(DataError, match=r"notes\.txt:2: no note; line 3: no note; mend"):
        open_source(recipe)


def test_drawn_sources_know_their_arguments():
    opened = open_source(SourceRecipe(kind="synth", name="shapes", seed=4, split="test"))
    assert opened[2].id == "shapes-test-4-2"
    assert opened.fingerprint != open_source(SourceRecipe(kind="synth", name="shapes", seed=5)).fingerprint
