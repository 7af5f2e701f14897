"""Rows and samples, both ways."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mini_internvl import plugins
from mini_internvl.data import DataError, Fault, Row, formats
from mini_internvl.data.check import Check
from mini_internvl.data.rows import read_rows, to_row, to_sample, write_rows
from mini_internvl.records import PatchAnnotation, Sample

ROOT = Path(".")


def read(raw, **options):
    return to_sample(Row(file=Path("example.jsonl"), place="line 1", raw=raw, id=str(raw.get("id", 1))), **options)


@pytest.mark.parametrize("name", plugins.list_names(formats.FOLDER))
def test_every_format_reads_its_own_example(name):
    module = plugins.find(formats.FOLDER, name)
    raw, sample = module.EXAMPLE
    assert read(raw) == read(raw, format=name) == sample  # found by its keys, and by its name


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
marked = texts.map(lambda text: text + "<image>")
plain = st.one_of(texts.filter(lambda text: "<" not in text), st.just("the \\<image> tag"))
named = st.fixed_dictionaries(
    {"type": st.just("image"), "image": st.sampled_from(["a.png", "d/b c.jpg", "data:image/png;base64,AA"])},
    optional={"name": texts, "scale": st.integers(1, 3), "max_tiles": st.integers(1, 9)},
)
asked = st.one_of(
    plain,
    st.tuples(st.lists(named, max_size=3), st.one_of(marked, plain)).map(
        lambda both: [*both[0], {"type": "text", "text": both[1]}]
    ),
)
annotation = st.builds(PatchAnnotation, text=texts, box=st.just((0.0, 0.25, 0.5, 1.0)), place=st.none() | st.just(3),
                       line=st.none() | st.just(0), colour=st.none() | texts)  # fmt: skip


number = st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)
target = number | st.lists(number, min_size=1, max_size=3).map(tuple) | texts


@st.composite
def samples(draw):
    turns = draw(st.lists(st.tuples(asked, plain), min_size=1, max_size=3))
    system = [{"role": "system", "content": draw(plain)}] if draw(st.booleans()) else []
    messages = [
        {"role": role, "content": said}
        for pair in turns
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    return Sample(
        id=draw(texts),
        messages=[*system, *messages],
        source=draw(texts),
        max_tiles=draw(st.none() | st.integers(1, 40)),
        patch_annotations=tuple(draw(st.lists(annotation, max_size=2))),
        independent=draw(st.booleans()),
        targets=draw(st.dictionaries(texts, target, max_size=2)),
    )


@given(samples())
def test_a_row_read_and_written_again_is_the_same_row(sample):
    row = json.loads(json.dumps(to_row(sample)))
    again = read(row, root=ROOT)
    assert isinstance(again, Sample)
    assert to_row(again) == row
    others = ("id", "source", "max_tiles", "patch_annotations", "independent", "targets")
    assert all(getattr(again, name) == getattr(sample, name) for name in others)
    if "messages" in row:
        assert again.messages == sample.messages


words = ["from", "value", "type", "text", "image", "image_url", "url", "bytes", "path", "role", "content", "box"]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["", "x", "<image>", "user"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(words), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(plugins.list_names(formats.FOLDER)), st.data())
def test_a_row_spoilt_anywhere_is_a_sample_or_a_fault(name, data):
    raw = json.loads(json.dumps(plugins.find(formats.FOLDER, name).EXAMPLE[0])) | {
        "max_tiles": 1,
        "patch_annotations": [],
    }
    holder = raw
    while isinstance(holder, dict | list) and holder:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if data.draw(st.booleans()) or not isinstance(holder[key], dict | list):
            holder[key] = data.draw(values)
            break
        holder = holder[key]
    checked = Check()
    checked.row(Row(file=Path("example.jsonl"), place="line 1", raw=raw, id="1"), to_sample)
    assert checked.samples + checked.faulty == 1
    assert all("object is not" not in str(fault) and "has no attribute" not in str(fault) for fault in checked.faults)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([3], r"targets is \[3\]; it must name its values"),
        ({"speed": True}, "targets.speed is True; it must be a number, a list of numbers or a text"),
        ({"speed": float("nan")}, "targets.speed is nan; it must be"),
        ({"path": [1, "left"]}, r"targets.path is \[1, 'left'\]; it must be"),
        ({"path": []}, r"targets.path is \[\]; it must be"),
    ],
)
def test_targets_of_another_kind_are_faults_that_name_them(given, reason):
    row = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}], "targets": given}
    assert re.match(reason, read(row).reason)
    assert read(row | {"targets": {"speed": None}}).targets == {}


def test_what_fits_is_written_as_internvl_rows():
    messages = [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A."},
    ]
    assert to_row(Sample(id="1", messages=messages)) == {
        "id": "1",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}],
    }
    named = [{"role": "user", "content": [{**messages[0]["content"][0], "name": "Front"}, messages[0]["content"][1]]}]
    row = to_row(Sample(id="1", messages=[MappingProxyType(named[0]), messages[1]]))
    assert row["messages"][0] == named[0]
    row["messages"][1]["content"] = "B."
    assert json.loads(json.dumps(row))["messages"][1] != messages[1]


def test_samples_become_a_file_with_its_images_and_faults_are_handed_back(tmp_path):
    image = Image.new("RGB", (5, 4), (1, 2, 3))
    image.save(tmp_path / "kept.jpg")
    parts = [image, (tmp_path / "kept.jpg").read_bytes(), str(tmp_path / "kept.jpg")]
    content = [*({"type": "image", "image": one} for one in parts), {"type": "text", "text": "Q"}]
    answer = {"role": "assistant", "content": "A"}
    sample = Sample(id="x", messages=[{"role": "user", "content": content}, answer], source="s", max_tiles=2)
    fault = Fault(file=Path("raw.xml"), place="line 3", reason="no box")
    assert write_rows([sample, fault], tmp_path / "out/rows.jsonl") == (1, [fault])
    (again,) = read_rows(tmp_path / "out/rows.jsonl")
    assert (again.id, again.source, again.max_tiles) == ("x", "s", 2)
    found = [Path(part["image"]) for part in again.messages[0]["content"][:3]]
    assert [path.suffix for path in found] == [".png", ".jpeg", ".jpg"]
    assert found[2] == tmp_path / "kept.jpg"
    with Image.open(found[0]) as written:
        assert written.tobytes() == image.tobytes()
    assert not list((tmp_path / "out").glob("*.part"))


def test_a_file_without_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"raw\.xml:3: no box; no row is left"):
        write_rows([Fault(file=Path("raw.xml"), place="line 3", reason="no box")], tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
