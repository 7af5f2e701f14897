"""Data of one's own: what is found at a path, how it is divided, and what is told of it."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mini_internvl.benchmarks import own
from mini_internvl.benchmarks._example import ExampleImage
from mini_internvl.data import DataError, Fault
from mini_internvl.data.rows import read_rows
from mini_internvl.domains import load_domain
from mini_internvl.domains._own import build
from mini_internvl.domains._own.splits import divide
from mini_internvl.inputs.messages import image_parts
from mini_internvl.records import Interrupted, Sample

SPLITS = ("train", "validation", "test")


def pictures(folder: Path, count: int) -> list[str]:
    """Different pictures below ``folder``; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (20 + number, 16), (number, 90, 200)).save(folder / f"{number}.png")
    return [f"{number}.png" for number in range(count)]


def row(image: str, question: str = "Is it red?", answer: str = "yes", **more: object) -> dict:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": said, **more}


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def shown(folder: Path) -> dict[str, list[str]]:
    """Split -> names of the pictures of its rows."""
    return {
        split: [
            Path(image_parts(sample.messages)[0].source).name
            for sample in read_rows(folder / f"{split}.jsonl")
            if isinstance(sample, Sample)
        ]
        for split in SPLITS
    }


def test_rows_of_one_picture_stay_in_one_split(tmp_path: Path) -> None:
    names = pictures(tmp_path, 20)
    rows = [row(name, question) for name in names for question in ("Is it red?", "Is it blue?", "Is it green?")]
    (tmp_path / "copy.png").write_bytes((tmp_path / "3.png").read_bytes())
    path = write(tmp_path / "mine.jsonl", [*rows, row("copy.png")])
    found = shown(build(path, tmp_path / "a", seed=1))
    assert {split: len(set(some) - {"copy.png"}) for split, some in found.items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }
    assert sum(map(len, found.values())) == 61
    assert not set(found["train"]) & {*found["validation"], *found["test"]}
    assert next("3.png" in some for some in found.values() if "copy.png" in some)
    write(path, [row("copy.png"), *reversed(rows)])
    again = shown(build(path, tmp_path / "b", seed=1))
    assert {split: sorted(some) for split, some in again.items()} == {
        split: sorted(some) for split, some in found.items()
    }
    other = shown(build(path, tmp_path / "c", seed=2))
    assert set(other["test"]) != set(found["test"])


def test_splits_of_the_data_hold(tmp_path: Path) -> None:
    names = pictures(tmp_path / "data", 12)
    write(tmp_path / "data/train.jsonl", [row(name) for name in names[:10]])
    write(tmp_path / "data/test.jsonl", [row(name) for name in names[9:]])
    folder = build(tmp_path / "data", tmp_path / "run")
    found = shown(folder)
    assert sorted(found["test"]) == ["10.png", "11.png", "9.png"]
    assert len(found["validation"]) == 1
    assert len(found["train"]) == 9
    lines = load_domain(str(tmp_path / "data")).about(folder)
    assert lines[0].endswith("data: 2 files (JSON lines)")
    assert lines[1].startswith(
        "splits as the data name them: train 9 rows about 9 pictures with 9 questions; validation"
    )
    assert any(line.startswith("warning: 1 pictures, or groups that rows show together, are in more") for line in lines)


def test_a_column_names_the_split_of_each_row(tmp_path: Path) -> None:
    names = pictures(tmp_path, 9)
    with (tmp_path / "mine.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "question", "answer", "split"])
        for number, name in enumerate(names):
            table.writerow([name, "How many?", number, ("train", "val", "test")[number % 3]])
        table.writerow([names[0], "How many?", 1, "holdout"])
    folder = build(tmp_path / "mine.csv", tmp_path / "run")
    assert {split: len(some) for split, some in shown(folder).items()} == dict.fromkeys(SPLITS, 3)
    domain = load_domain(str(tmp_path / "mine.csv"))
    faults = [one for one in domain.convert(folder, "train") if isinstance(one, Fault)]
    assert [str(fault) for fault in faults] == [
        f'{tmp_path / "mine.csv"}: row 10: split is "holdout"; it must be train, validation or test'
    ]


def test_pictures_inside_the_data_are_written_beside_the_rows(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "mine.tar", "w") as tar:
        for number in range(5):
            content = json.dumps({"question": "Which?", "answer": str(number)}).encode()
            for name, data in ((f"{number}.json", content), (f"{number}.png", ExampleImage(width=50 + number).png())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    folder = build(tmp_path / "mine.tar", tmp_path / "run")
    found = [sample for split in SPLITS for sample in read_rows(folder / f"{split}.jsonl")]
    assert len(found) == 5
    sources = [Path(image_parts(sample.messages)[0].source) for sample in found if isinstance(sample, Sample)]
    assert all(source.is_relative_to(folder / "images") and source.is_file() for source in sources)


def test_test_questions_are_told_by_kind_with_their_shape(tmp_path: Path) -> None:
    names = pictures(tmp_path, 40)
    rows = [row(name, *pair) for name in names for pair in (("How many cars?", "3"), ('Is "this" red?', "no"))]
    folder = build(write(tmp_path / "mine.jsonl", rows), tmp_path / "run")
    lines = load_domain(str(tmp_path / "mine.jsonl")).about(folder)
    assert lines[2:] == [
        "4 test questions: how many cars?: whole numbers, exact",
        "4 test questions: is <> red?: yes or no",
        "warning: there are only 8 test questions; their scores say little",
    ]
    assert len(list(own.items(folder))) == 8


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no rows|nothing in"),
        ([{"text": "x"}], r"mine\.jsonl:1: no format reads a row with the keys text.*no row is left"),
        ([row("gone.png")], r"mine\.jsonl:1: the image .*gone\.png is missing"),
        ([row("0.png"), row("1.png")], "2 different pictures to train on; 3 are the least"),
    ],
)
def test_data_that_cannot_be_used_are_refused(rows: list[dict], message: str, tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    with pytest.raises(ValueError, match=message):
        build(write(tmp_path / "mine.jsonl", rows), tmp_path / "run")
    assert not (tmp_path / "run/made.json").exists()


def test_what_is_likely_a_mistake_is_told(tmp_path: Path) -> None:
    pictures(tmp_path, 5)
    path = write(tmp_path / "mine.jsonl", [row(f"{number}.png") for number in range(5)])
    told = load_domain(str(path)).about(build(path, tmp_path / "run"))
    assert any("only 3 rows to train on" in line for line in told)
    assert any('every training answer is "yes"' in line for line in told)
    texts = [{**row("", f"Question {number}?", str(number)), "image": ""} for number in range(5)]
    path = write(tmp_path / "texts.jsonl", texts)
    assert any("no row has a picture" in line for line in load_domain(str(path)).about(build(path, tmp_path / "b")))


def test_it_is_made_once_and_again_when_the_data_change(tmp_path: Path) -> None:
    pictures(tmp_path, 6)
    path = write(tmp_path / "mine.jsonl", [row(f"{number}.png") for number in range(5)])
    folder = build(path, tmp_path / "run")
    first = (folder / "made.json").stat().st_mtime_ns
    assert (build(path, folder) / "made.json").stat().st_mtime_ns == first
    write(path, [row(f"{number}.png") for number in range(6)])
    build(path, folder)
    assert sum(map(len, shown(folder).values())) == 6

    def stop(done: int, total: int) -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        build(path, folder, seed=5, progress=stop)
    assert not (folder / "made.json").exists()


def test_classes_of_folders_are_asked_for_with_their_names(tmp_path: Path) -> None:
    for name in ("Forest", "sea_lake"):
        for number in range(12):
            place = tmp_path / "photos" / name / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number, len(name), 0)).save(place)
    folder = build(tmp_path / "photos", tmp_path / "run")
    [item, *others] = own.items(folder)
    assert "forest, sea lake" in item.messages[-1].text
    assert {one.reference["answer"] for one in (item, *others)} <= {"forest", "sea lake"}
    assert "a folder of pictures for each of 2 classes" in load_domain(str(tmp_path / "photos")).about(folder)[0]


def test_two_folders_of_one_class_are_named(tmp_path: Path) -> None:
    for name in ("A_b", "a-b", "c"):
        pictures(tmp_path / "photos" / name, 3)
    with pytest.raises(DataError, match=r'the folders A_b and a-b in .*photos both mean the class "a b"; put their'):
        build(tmp_path / "photos", tmp_path / "run")


def test_a_test_folder_without_classes_is_told_and_a_test_is_drawn(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pictures(tmp_path / "data" / "train" / name, 20)
    pictures(tmp_path / "data" / "test", 5)
    folder = build(tmp_path / "data", tmp_path / "run")
    assert any("test is left out" in line for line in load_domain(str(tmp_path / "data")).about(folder))
    assert all(shown(folder).values())


def test_a_name_that_is_no_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.jsonl does not exist; give a domain's name, or the path of data"):
        load_domain(str(tmp_path / "gone.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"lies inside the data.*give an --output outside"):
        build(tmp_path / "empty", tmp_path / "empty/runs/empty/data")
    with pytest.raises(ValueError, match=r"nothing in .*empty can be read; give a file of rows"):
        build(tmp_path / "empty", tmp_path / "run")


keys = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=2)
named = st.sampled_from(["", "", "train", "validation", "test"])


@given(st.lists(st.tuples(keys, named), min_size=1, max_size=30), st.integers(0, 5))
def test_rows_that_share_a_picture_share_their_drawn_split(rows: list[tuple[list[str], str]], seed: int) -> None:
    divided: Callable[..., tuple[list[str], int]] = divide
    drawn = [(some, "") for some, _ in rows]
    try:
        splits, shared = divided(drawn, seed=seed)
    except ValueError:
        return
    assert shared == 0
    assert set(splits) == set(SPLITS)
    where: dict[str, set[str]] = {}
    for (some, _), split in zip(rows, splits, strict=True):
        for key in some:
            where.setdefault(key, set()).add(split)
    assert all(len(found) == 1 for found in where.values())
    again = dict(zip(map(str, range(len(rows))), splits, strict=True))
    backwards, _ = divided(drawn[::-1], seed=seed)
    assert list(again.values()) == backwards[::-1]
    try:
        held, _ = divided(rows, seed=seed)
    except ValueError:
        return
    if len({split or "train" for _, split in rows}) > 1:
        assert all(split in ("", "train", got) for (_, split), got in zip(rows, held, strict=True))


def test_a_test_set_that_the_data_name_is_not_trained_on_where_other_rows_name_no_split(tmp_path: Path) -> None:
    names = pictures(tmp_path / "a", 20)
    write(tmp_path / "a" / "questions.jsonl", [row(name) for name in names[:14]])
    write(tmp_path / "a" / "test.jsonl", [row(name) for name in names[14:]])
    folder = build(tmp_path / "a", tmp_path / "run")
    assert sorted(shown(folder)["test"]) == sorted(names[14:])
    assert "splits as the data name them" in load_domain(str(tmp_path / "a")).about(folder)[1]
    alone = build(tmp_path / "a" / "test.jsonl", tmp_path / "alone")
    assert "splits drawn by picture" in load_domain(str(tmp_path / "a" / "test.jsonl")).about(alone)[1]


def test_rows_that_a_meta_file_names_are_read_again_when_they_change(tmp_path: Path) -> None:
    names = pictures(tmp_path / "a", 12)
    write(tmp_path / "a" / "rows.jsonl", [row(name) for name in names])
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"one": {"root": "a", "annotation": "a/rows.jsonl"}}), encoding="utf-8")
    folder = build(meta, tmp_path / "run")
    assert sum(map(len, shown(folder).values())) == 12
    write(tmp_path / "a" / "rows.jsonl", [row(name) for name in names[:8]])
    assert sum(map(len, shown(build(meta, folder)).values())) == 8


def test_labels_beside_a_yaml_file_are_read_again_when_they_change(tmp_path: Path) -> None:
    for number, name in enumerate(pictures(tmp_path / "a" / "images", 8)):
        label = tmp_path / "a" / "labels" / f"{number}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("0 0.5 0.5 0.2 0.2\n", encoding="utf-8")
        assert name == f"{number}.png"
    yaml = tmp_path / "a" / "data.yaml"
    yaml.write_text("names: [tree]\n", encoding="utf-8")
    folder = build(yaml, tmp_path / "run")
    assert '"2"' not in (folder / "train.jsonl").read_text(encoding="utf-8")
    for label in (tmp_path / "a" / "labels").iterdir():
        label.write_text("0 0.5 0.5 0.2 0.2\n0 0.2 0.2 0.1 0.1\n", encoding="utf-8")
    assert '"2"' in (build(yaml, folder) / "train.jsonl").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="lies inside the data"):
        build(yaml, tmp_path / "a" / "runs" / "data")


def test_a_file_that_is_no_image_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    names = pictures(tmp_path, 12)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("<html>not found</html>", encoding="utf-8")
    path = write(tmp_path / "rows.jsonl", [row(name) for name in (*names, "empty.png", "text.png")])
    folder = build(path, tmp_path / "run")
    faults = [json.loads(line) for line in (folder / "faults.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["place"] for one in faults] == ["line 13", "line 14"]
    assert [name in one["reason"] for name, one in zip(("empty.png", "text.png"), faults, strict=True)] == [True, True]
    assert sum(map(len, shown(folder).values())) == 12


def test_odd_rows_are_read_or_told_with_their_line(tmp_path: Path) -> None:
    """Each line is one that people have: read where its meaning is plain, otherwise a fault that names the line."""
    names = pictures(tmp_path, 12)
    said = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "a box"}]
    good = [
        {"messages": said, "images": [names[0]]},
        {"messages": said, "image": {"bytes": None, "path": names[1]}},
        {"image": names[2], "conversations": [{"from": "user", "value": "What?"}, {"from": "assistant", "value": "A"}]},
        {"conversations": [{"from": "human", "value": f"<img>{names[3]}</img>What?"}, {"from": "gpt", "value": "A"}]},
        {"image": float("nan"), **{"conversations": row("")["conversations"]}},
        {"image": "data:image/png;base64," + ExampleImage().base64(), "conversations": row("")["conversations"]},
        row("", "What does the tag \\<image> do?", "It shows one.") | {"image": ""},
        {"query": "<image>What?", "response": "A", "images": [names[4]]},
        {"image": names[5], "question": "How many?", "answer": 3},
    ]
    bad = [
        ({"image": names[6], "conversations": "hi"}, "conversations is 'hi'"),
        (row(names[6], "What?", None), "value is null"),  # type: ignore[arg-type]
        (row(names[6], "<image> and <image>?"), "2 <image> placeholders but 1 images"),
        (row(names[6], "What?", "<image>"), "is an answer and holds an image"),
        (row(names[6], "What?", "nice \ud83d"), "lone surrogate"),
        ({"messages": said, "video": "a.mp4"}, '"video" would reach no sample'),
        ({"image": names[6], "conversations": [{"from": "human", "value": "What?"}]}, "there is no answer to learn"),
        (row("gone.png"), "gone.png is missing"),
        ({}, "no format reads an empty row"),
    ]
    plain = [row(name) for name in names[6:]]
    lines = [json.dumps(one) for one in [*good, *plain, *(one for one, _ in bad)]]
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join([*lines, '{"image": ', ""]).encode() + b'{"image": "\xff"}\n')
    folder = build(path, tmp_path / "run")
    assert sum(map(len, shown_rows(folder).values())) == len(good) + len(plain)
    told = [json.loads(line) for line in (folder / "faults.jsonl").read_text(encoding="utf-8").splitlines()]
    first = len(good) + len(plain) + 1
    assert [fault["place"] for fault in told] == [f"line {first + n}" for n in range(len(bad) + 2)]
    wanted = [*(reason for _, reason in bad), "not valid JSON", "not valid UTF-8"]
    assert all(reason in fault["reason"] for reason, fault in zip(wanted, told, strict=True))


def shown_rows(folder: Path) -> dict[str, list[Sample | Fault]]:
    return {split: list(read_rows(folder / f"{split}.jsonl")) for split in SPLITS}


def test_a_meta_file_names_the_files_with_their_images_and_tiles(tmp_path: Path) -> None:
    names = pictures(tmp_path / "images", 12)
    write(tmp_path / "a.jsonl", [row(name) for name in names])
    write(tmp_path / "b.jsonl", [row(name, "Is it blue?") for name in names])
    meta = {
        "first": {"annotation": "a.jsonl", "root": "images", "repeat_time": 2, "max_dynamic_patch": 6},
        "second": {"annotation": "b.jsonl", "root": "images", "repeat_time": 0.5},
        "third": {"annotation": "b.jsonl", "root": "images"},
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    folder = build(tmp_path / "meta.json", tmp_path / "run")
    found = shown_rows(folder)
    counts = {split: Counter((one.source, one.max_tiles) for one in some) for split, some in found.items()}
    assert [counts[split]["first", 6] for split in SPLITS] == [20, 1, 1]
    assert sum(some["second", None] for some in counts.values()) == 6
    assert sum(some["third", None] for some in counts.values()) == 12
    halves = {image_parts(one.messages)[0].source for some in found.values() for one in some if one.source == "second"}
    assert {Path(one).name for one in halves} == set(names[:6])
    told = load_domain(str(tmp_path / "meta.json")).about(folder)
    assert "3 files (JSON lines)" in told[0]
    assert told[2] == "rows of first: train 10, validation 1, test 1 (each row 2 times, at most 6 tiles)"
    assert told[3].endswith("(the first 50 % of its rows)")
    assert told[4] == "rows of third: train 10, validation 1, test 1"


def test_a_share_of_rows_that_cannot_be_taken_is_told(tmp_path: Path) -> None:
    names = pictures(tmp_path, 4)
    write(tmp_path / "a.jsonl", [row(name) for name in names])
    for repeat, message in ((1.5, "above 1 it must be a whole number"), (0.1, "leaves none of 4 rows")):
        meta = {"first": {"annotation": "a.jsonl", "repeat_time": repeat}}
        (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        with pytest.raises(DataError, match=message):
            build(tmp_path / "meta.json", tmp_path / "run" / "data")


def test_rows_outside_the_folder_that_a_meta_json_names_are_read_again_when_they_change(tmp_path):
    folder, rows = tmp_path / "mine", tmp_path / "rows.jsonl"
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps({"all": {"annotation": "../rows.jsonl"}}))
    for count in (30, 40):
        asked = [{"from": "human", "value": f"What is {number}?"} for number in range(count)]
        lines = [{"conversations": [one, {"from": "gpt", "value": "A cat."}]} for one in asked]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        build(folder, tmp_path / "data")
        made = json.loads((tmp_path / "data/made.json").read_text())
        assert sum(made["rows"].values()) == count
