"""Rows are the same after any conversion, and the bytes of a file do not depend on who wrote it."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mini_internvl.data import DataError
from mini_internvl.data import convert as converting
from mini_internvl.data.convert import Settings
from mini_internvl.data.convert import convert as convert_state
from mini_internvl.data.draft import Shards
from mini_internvl.data.rows import read_samples
from mini_internvl.data.writers import image_bytes
from mini_internvl.domains import vqa_rad
from mini_internvl.inputs.messages import normalise

KINDS = ("jsonl", "parquet", "tar")


def convert(source, out, *, inside=None, **settings):
    """Rows that were written, and the faults."""
    done = convert_state(source, out, inside=inside, settings=Settings(**settings))
    return done.rows, done.faults


LETTER = {"text": "A", "box": [0, 0, 1, 0.5]}


def turns(*said):
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(said)]


@pytest.fixture
def source(tmp_path):
    """Rows of every shape."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.jpg", "c.webp")):
        Image.new("RGB", (30, 20 + number), (number * 40, 90, 90)).save(folder / name)
    views = [{"type": "image", "image": name, "name": name[0].upper()} for name in ("a.png", "b.jpg")]
    asked = [*views, {"type": "text", "text": "Which?"}]
    rows = [
        {"id": 7, "image": "a.png", "conversations": turns("<image>\nWhat?", "A „cat“.\n", "And?", "No.")},
        {"image": ["a.png", "b.jpg"], "conversations": turns("<image> or <image>?", "The first.")},
        {"conversations": turns("Text \\<image> alone", "Yes."), "max_tiles": 4, "independent": True},
        {"conversations": [{"from": "system", "value": "Be short."}, *turns("Hi", "Hi.")], "source": "talk"},
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "B."}]},
        {"image": "c.webp", "conversations": turns("Speed?", "3"), "targets": {"speed": 3.25, "turn": [1.0, 2.0]}},
        {"image": "a.png", "conversations": turns("Read", "A"), "patch_annotations": [LETTER]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "b.jpg", "scale": 2}]},
                      {"role": "assistant", "content": "B"}]},
    ]  # fmt: skip
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def part_told(part):
    return part if isinstance(part, str) else (image_bytes(part.source), part.name, part.scale, part.placed)


def told(path):
    """All that rows say, images by their bytes."""
    found = []
    for sample in read_samples(path):
        said = [(turn.role, *map(part_told, turn.parts)) for turn in normalise(sample.messages)]
        facts = sample.source, sample.max_tiles, sample.independent, dict(sample.targets), sample.patch_annotations
        found.append((sample.id, said, facts))
    return found


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_when_read_again(source, tmp_path, kind, inside):
    pytest.importorskip("pyarrow")
    out = tmp_path / "out" / f"rows.{kind}"
    assert convert(source, out, inside=inside) == (8, [])
    assert told(out) == told(source)
    back = tmp_path / "back" / "rows.jsonl"
    convert(out, back)
    assert told(back) == told(source)
    if not inside:
        plain = tmp_path / "plain" / "rows.jsonl"
        convert(source, plain)
        assert back.read_bytes() == plain.read_bytes()


def write_asked(folder, *parts):
    """A file of one row that shows a picture in OpenAI's form, and then one with other parts."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (30, 20)).save(folder / "a.png")
    address = {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}, "name": "A"}
    answer = {"role": "assistant", "content": "B."}
    lines = [
        {"messages": [{"role": "user", "content": [*some, {"type": "text", "text": "What?"}]}, answer]}
        for some in ([address], *([part] for part in parts))
    ]
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_images_in_the_form_of_openai_are_kept(tmp_path, kind, inside):
    pytest.importorskip("pyarrow")
    source = write_asked(tmp_path / "source")
    picture = (source.parent / "a.png").read_bytes()
    convert(source, tmp_path / f"out.{kind}", inside=inside)
    if inside:
        (source.parent / "a.png").unlink()
    (sample,) = read_samples(tmp_path / f"out.{kind}")
    (image, *_), *_ = (turn.parts for turn in normalise(sample.messages))
    assert (image.name, image_bytes(image.source)) == ("A", picture)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": "a.mp4"},
        {"type": "image", "image": "a.png", "scale": 2.5},
        {"type": "image", "image": "a.png", "scale": 2**70},
        {"type": "image", "image": "a.png", "max_tiles": 2**65},
        {"type": "image", "image": "a.png", "name": 7},
    ],
)
def test_what_has_no_place_in_parquet_is_a_fault_with_its_row(tmp_path, part):
    pytest.importorskip("pyarrow")
    source = write_asked(tmp_path / "source", part)
    written, (fault,) = convert(source, tmp_path / "out.parquet", skip=True)
    assert written == 1
    assert (fault.file, fault.place) == (source, "line 2")
    assert "Parquet" in fault.reason


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_do_not_depend_on_the_number_of_processes(source, tmp_path, kind, inside, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(converting, "BATCH_ROWS", 3)
    monkeypatch.setattr(converting, "INSIDE_ROWS", 3)
    contents = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}" / f"rows.{kind}"
        convert(source, out, inside=inside, workers=workers)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]


def test_images_inside_become_files_beside_json_lines(source, tmp_path):
    pytest.importorskip("pyarrow")
    convert(source, tmp_path / "rows.parquet")
    convert(tmp_path / "rows.parquet", tmp_path / "out" / "rows.jsonl")
    row = json.loads((tmp_path / "out" / "rows.jsonl").read_text().splitlines()[0])
    assert row["image"] == "images/rows/000000-1.png"
    assert (tmp_path / "out" / row["image"]).read_bytes() == (source.parent / "a.png").read_bytes()


def test_each_row_of_a_meta_json_is_written_once(source, tmp_path):
    meta = {"mine": {"annotation": str(source), "root": str(source.parent), "repeat_time": 3, "max_dynamic_patch": 2}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert convert(tmp_path / "meta.json", tmp_path / "out.jsonl")[0] == 8
    samples = read_samples(tmp_path / "out.jsonl")
    assert [sample.source for sample in samples] == ["mine"] * 3 + ["talk"] + ["mine"] * 4
    assert [sample.max_tiles for sample in samples] == [2, 2, 4, 2, 2, 2, 2, 2]


def test_a_row_that_cannot_be_used_stops_it_or_is_left_out(source, tmp_path):
    with source.open("a") as file:
        file.write('{"id": 1}\n')
        file.write(json.dumps({"image": "none.png", "conversations": turns("What?", "A cat.")}) + "\n")
    out = tmp_path / "out.tar"
    with pytest.raises(DataError, match=r"rows.jsonl:9: no format reads .*--skip"):
        convert(source, out)
    assert not out.exists()
    written, faults = convert(source, out, skip=True)
    assert (written, [fault.place for fault in faults]) == (8, ["line 9", "line 10"])
    assert "none.png is missing" in faults[1].reason
    assert len(told(out)) == 8


def test_nothing_is_replaced_and_the_ending_tells_the_kind(source, tmp_path):
    (tmp_path / "there.tar").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        convert(source, tmp_path / "there.tar")
    with pytest.raises(DataError, match=r"known: .jsonl, .parquet, .tar"):
        convert(source, tmp_path / "rows.csv")


def test_the_command_converts(minivl, source, tmp_path):
    code, out, _ = minivl("data", "convert", source, tmp_path / "rows.tar", "--workers", 1)
    assert (code, out) == (0, f"{tmp_path / 'rows.tar'}: 8 rows\n")
    code, _, err = minivl("data", "convert", source, tmp_path / "rows.xlsx")
    assert code == 1
    assert "the kind of file is told by its ending" in err


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_no_images_do_not_get_into_a_file(tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_text("<html>not found</html>")
    rows = [{"image": name, "conversations": turns("Q", "A")} for name in ("empty.png", "good.png", "page.png")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written, faults = convert(tmp_path / "rows.jsonl", tmp_path / f"out.{kind}", inside=True, skip=True)
    assert (written, [fault.place for fault in faults]) == (1, ["line 1", "line 3"])


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_read_as_one_file_is(source, tmp_path, kind):
    pytest.importorskip("pyarrow")
    source.write_text(source.read_text() * 3)
    out = tmp_path / "out" / f"rows.{kind}"
    done = convert_state(source, out, settings=Settings(shards=Shards(rows=10)))
    assert [path.name for path in done.shards] == [f"rows-{number:06d}.{kind}" for number in range(3)]
    assert sorted(path.name for path in out.parent.glob("*.*") if path.is_file()) == [one.name for one in done.shards]
    counts = [len(read_samples(path)) for path in done.shards]
    assert counts == [10, 10, 4]
    assert [one for path in done.shards for one in told(path)] == told(source)
    back = tmp_path / "back.jsonl"
    assert convert(out.parent, back) == (24, [])
    assert told(back) == told(source)
    with pytest.raises(DataError, match=r"rows-000000.* exists already"):
        convert(source, out, shards=Shards(size=1))


def test_a_shard_ends_with_the_row_that_fills_it(source, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "BATCH_ROWS", 1)
    done = convert_state(source, tmp_path / "rows.jsonl", settings=Settings(shards=Shards(size=300)))
    sizes = [path.stat().st_size for path in done.shards]
    lines = [path.read_bytes().splitlines() for path in done.shards]
    assert len(sizes) > 2
    assert all(size >= 300 and size - len(rows[-1]) - 1 < 300 for size, rows in zip(sizes[:-1], lines, strict=False))


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset's
def test_shards_are_read_by_the_libraries_of_their_kinds(source, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    webdataset = pytest.importorskip("webdataset")
    for kind in ("tar", "parquet"):
        convert(source, tmp_path / kind / f"rows.{kind}", shards=Shards(rows=3))
    asked = str(tmp_path / "tar" / "rows-{000000..000002}.tar")
    members = list(webdataset.WebDataset(asked, shardshuffle=False, empty_check=False))
    assert [json.loads(one["json"])["id"] for one in members] == [one.id for one in read_samples(source)]
    assert sum(key.endswith("jpeg") for one in members for key in one) == 3
    table = parquet.read_table(tmp_path / "parquet")
    assert table.column("id").to_pylist() == [one.id for one in read_samples(source)]


def test_the_command_converts_a_domain(minivl, tmp_path):
    raw = vqa_rad.EXAMPLE.write(tmp_path / "raw")
    code, _, err = minivl("data", "convert", "vqa-rad", tmp_path / "rows.jsonl", "--data", raw, "--workers", 1)
    assert code == 1
    assert "--skip" in err
    options = ("--data", raw, "--workers", 1, "--skip", "--shard-rows", 1, "--json")
    code, out, _ = minivl("data", "convert", "vqa-rad", tmp_path / "out" / "rows.parquet", *options)
    told = json.loads(out)
    assert (code, told["rows"], told["faults"]) == (0, len(vqa_rad.EXAMPLE.samples["train"]), len(told["left_out"]))
    assert told["faults"] == vqa_rad.EXAMPLE.faults["train"]
    assert told["files"][0].endswith("rows-000000.parquet")
    assert sum(len(read_samples(path)) for path in told["files"]) == told["rows"]
    code, _, err = minivl("data", "convert", "vqa-rad", tmp_path / "x.tar", "--data", raw, "--split", "none")
    assert code == 1
    assert 'the split "none" is not known; there are: train' in err
    assert minivl("data", "convert", raw, tmp_path / "x.tar", "--split", "train")[0] == 2
