"""An index is made once, the same by any number of processes, and taken again only while it is true and whole."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mini_internvl.data import DataError, Fault, Row, index, workers
from mini_internvl.data.index import open_index
from mini_internvl.data.rows import to_sample
from mini_internvl.data.sources import open_source
from mini_internvl.inputs.images import image_dimensions
from mini_internvl.inputs.messages import image_parts, question
from mini_internvl.recipes import SourceRecipe
from mini_internvl.records import Size


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "BATCH_ROWS", 7)
    return tmp_path / "cache" / "index"


def measure(sample):
    """A word is a token; each image of more than 9 pixels a side has two tiles."""
    words = len(question(sample.messages).split())
    if words > 20:
        raise ValueError(f"it has {words} words")
    tiles = sum(1 + (image_dimensions(image.source)[0] > 9) for image in image_parts(sample.messages))
    return Size(tokens=words + tiles, supervised=1, tiles=tiles, shortened=words > 15)


def refused(sample):
    raise AssertionError("the row was measured again")


def row(number, **more):
    asked = "word " * (1 + number % 18)
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "Yes."}]
    shown = {"image": "small.png" if number % 2 else "large.png"} if number % 3 else {}
    return json.dumps({"id": number, "conversations": turns, **shown, **more}) + "\n"


@pytest.fixture
def path(tmp_path):
    for name, side in (("small", 9), ("large", 10)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    lines = [row(number) for number in range(40)]
    lines[3] = "{\n"
    lines[11] = row(11, image="late.png")
    lines[20] = row(20, mood=1)
    lines[33] = row(33, mood=1)
    lines[37] = row(37).replace("word", "word " * 30)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["", *lines]).replace("\n\n", "\n"))
    return path


def opened(path, measure=measure, **more):
    return open_index(path, **({"read": to_sample, "measure": measure, "key": "words"} | more))


def files(cache):
    return sorted(cache.iterdir())


def test_rows_sizes_and_faults_stand_at_their_places(path):
    found = opened(path)
    assert len(found) == 40
    faults = {3: "not valid JSON", 11: f"the image {path.parent / 'late.png'} is missing", 37: "it has 61 words"}
    assert found.faulty.tolist() == list(faults)
    assert found.tokens.dtype == found.supervised.dtype == found.tiles.dtype == np.int32
    for number in range(40):
        one = found.row(number)
        size = (found.tokens[number], found.supervised[number], found.tiles[number])
        if number in faults:
            assert size == (0, 0, 0)
            assert isinstance(one, Fault)
            assert str(one).startswith(f"{path}:{number + 2}: {faults[number]}")
        else:
            assert isinstance(one, Row)
            assert one.id == str(number)
            wanted = measure(to_sample(one))
            assert size == (wanted.tokens, wanted.supervised, wanted.tiles)
    assert list(found.faults) == [found.row(number) for number in faults]
    assert found.noted == {'the key "mood" is not read': ("line 22", 2)}
    assert found.shortened == sum(number % 18 >= 14 for number in range(40) if number not in faults)
    assert found.groups() is None


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_makes_the_same(path, cache, count):
    opened(path)
    [file] = files(cache)
    alone = file.read_bytes()
    file.unlink()
    opened(path, workers=count)
    assert file.read_bytes() == alone


def test_it_is_taken_again_until_the_content_or_the_key_changes(path, tmp_path, cache):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for number, line in enumerate(lines) if number not in (0, 4, 12, 38)))
    first = opened(path)
    assert not len(first.faulty)
    again = opened(path, refused)
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.sizes, first.sizes)
    os.utime(path, (1, 1))  # the same content
    assert len(opened(path, refused)) == 37
    assert opened(path, refused).meta["facts"][1] == 10**9
    for change in ({"key": "others"}, {}):
        if not change:
            path.write_text(path.read_text().replace("Yes", "Not"))
        with pytest.raises(AssertionError, match="measured again"):
            opened(path, refused, **change)
    assert opened(path).fingerprint != first.fingerprint
    assert len(files(cache)) == 1  # in the place of the old one
    assert opened(path, key="").fingerprint == opened(path).fingerprint
    assert len(files(cache)) == 1  # what nothing can tell from others is not kept


def test_an_image_put_in_its_place_mends_its_row_alone(path, cache):
    before = opened(path)
    Image.new("RGB", (9, 9)).save(path.parent / "late.png")
    after = opened(path)
    assert after.faulty.tolist() == [3, 37]
    assert isinstance(after.row(11), Row)
    changed = np.flatnonzero((after.sizes != before.sizes).any(1))
    assert changed.tolist() == [11]
    [file] = files(cache)
    file.unlink()
    fresh = opened(path)
    assert np.array_equal(fresh.sizes, after.sizes)
    assert (fresh.noted, fresh.shortened, list(fresh.faults)) == (after.noted, after.shortened, list(after.faults))


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-30], lambda c: c[: len(c) // 2], lambda c: b"x" * len(c), lambda c: b""]
)
def test_what_is_no_whole_index_is_made_anew(path, cache, damage):
    wanted = opened(path).sizes.tolist()
    [file] = files(cache)
    file.write_bytes(damage(file.read_bytes()))
    assert opened(path).sizes.tolist() == wanted
    assert opened(path, refused_but_faulty).sizes.tolist() == wanted


def refused_but_faulty(sample):
    """Only faulty rows are looked at again."""
    if sample.id != "37":
        refused(sample)
    return measure(sample)


def test_a_stopped_one_leaves_nothing(path, cache):
    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(path, on_progress=stop)
    assert files(cache) == []


def test_a_file_that_changes_meanwhile_is_told(path, cache):
    def change(done):
        with path.open("a") as file:
            file.write(row(99))

    with pytest.raises(DataError, match=r"rows\.jsonl was changed while it was read; start again"):
        opened(path, on_progress=change)
    assert files(cache) == []


def test_without_a_cache_folder_it_is_kept_elsewhere_with_one_warning(path, tmp_path, monkeypatch, caplog):
    wanted = opened(path).sizes.tolist()
    (tmp_path / "full").touch()
    monkeypatch.setenv("MINIVL_CACHE", str(tmp_path / "full"))
    with caplog.at_level(logging.WARNING):
        kept = [opened(path) for _ in range(2)]
    assert [found.sizes.tolist() for found in kept] == [wanted] * 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "MINIVL_CACHE" in caplog.text
    folder = kept[0].file.parent
    again = pickle.loads(pickle.dumps(kept[0]))
    assert again.row(37) == kept[0].row(37)
    assert np.array_equal(again.sizes, kept[0].sizes)
    del kept, again
    assert not folder.exists()


def _open_and_tell(path, queue):
    queue.put(opened(path).sizes.tolist())


def test_processes_that_open_at_once_do_not_disturb_each_other(path, cache):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_open_and_tell, args=(path, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [opened(path).sizes.tolist()] * 4
    assert len(files(cache)) == 1


def test_spawned_workers_make_the_same(path, cache, monkeypatch):
    wanted = opened(path, tokens_alone).sizes.tolist()
    files(cache)[0].unlink()
    monkeypatch.setattr(workers, "CONTEXT", "spawn")
    assert opened(path, tokens_alone, workers=2).sizes.tolist() == wanted


def tokens_alone(sample):
    return Size(tokens=1, supervised=1, tiles=0)


def source(path, **more):
    return open_source(SourceRecipe(kind="rows", path=str(path)), **({"measure": measure, "key": "words"} | more))


def test_a_source_knows_the_sizes_of_its_numbers(path, tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl:5: not valid JSON.*; line 13: .*; line 39: .* words; mend"):
        source(path)
    (tmp_path / "short.jsonl").write_text(row(1) + row(2) + row(3))
    meta = {"a": {"annotation": "rows.jsonl", "repeat_time": 0.3}, "b": {"annotation": "short.jsonl", "repeat_time": 2}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    mixed = source(tmp_path / "meta.json", strict=False).with_seed(5)
    assert len(mixed) == 18
    assert [fault.place for fault in mixed.faults] == ["line 5", "line 13"]
    numbers = np.array([50, 3, 17, 18, 0, *range(36)])
    tokens, supervised, tiles = mixed.sizes_at(numbers)
    for place, number in enumerate(numbers.tolist()):
        sample = mixed[number]
        wanted = Size(tokens=0, supervised=0, tiles=0) if isinstance(sample, Fault) else measure(sample)
        assert (tokens[place], supervised[place], tiles[place]) == (wanted.tokens, wanted.supervised, wanted.tiles)
    assert sum(isinstance(mixed[number], Fault) for number in range(18)) == 2
    assert [len(column) for column in mixed.sizes.columns] == [18] * 3
    assert [line for line in mixed.warnings if "shortened" in line] == [
        "8 samples were shortened to fit max_length (fewer tiles, or turns taken from their end); raise it to train on "
        "all of them"
    ]


def test_sizes_that_nobody_measured_are_not_known(path):
    with pytest.raises(ValueError, match="without a measure"):
        source(path, measure=None, strict=False).sizes_at(np.array([0]))


def test_drawn_samples_are_measured_when_they_are_asked_for():
    drawn = open_source(SourceRecipe(kind="synth", name="shapes"), tokens_alone)
    assert drawn.sizes is None
    assert [column.tolist() for column in drawn.sizes_at(np.array([4, 2]))] == [[1, 1], [1, 1], [0, 0]]


def test_rows_of_parquet_are_indexed_by_group(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [json.loads(row(number)) for number in range(0, 60, 3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet", row_group_size=9)
    found = opened(tmp_path / "r.parquet", workers=2)
    assert found.tokens.tolist() == [measure(to_sample(found.row(number))).tokens for number in range(20)]
    assert found.groups().tolist() == [0] * 9 + [1] * 9 + [2] * 2


def test_a_domains_samples_are_measured_too(tmp_path):
    (tmp_path / "own.py").write_text(
        "from mini_internvl.records import Sample\n"
        'SPLITS = ("train",)\n'
        "def convert(raw, split):\n"
        "    for number in (3, 30):\n"
        '        turns = [("user", "word " * number), ("assistant", "Yes.")]\n'
        '        messages = [{"role": role, "content": said} for role, said in turns]\n'
        "        yield Sample(id=str(number), messages=messages)\n"
    )
    recipe = SourceRecipe(kind="domain", name=str(tmp_path / "own.py"), path=str(tmp_path))
    found = open_source(recipe, measure, strict=False)
    assert sorted(found.sizes_at(np.arange(2))[0].tolist()) == [0, 4]
    assert [fault.reason for fault in found.faults] == ["it has 31 words"]
    assert isinstance(found.read(1), Fault)
    with pytest.raises(DataError, match="it has 31 words; mend"):
        open_source(recipe, measure)


def test_the_cache_of_the_user_is_the_default(monkeypatch):
    monkeypatch.delenv("MINIVL_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert index._place(Path("a.jsonl"), "").parent == Path("/somewhere/.cache/mini-internvl/index")


def test_indexes_that_nobody_opens_are_deleted_when_another_is_made(path, cache):
    opened(path)
    opened(path, key="others")
    [one, other] = files(cache)
    old = time.time() - (index.KEPT_DAYS + 1) * 86400
    for file in (one, other):
        os.utime(file, (old, old))
    opened(path)  # one of them, which is new then
    assert len(files(cache)) == 2
    kept = [file for file in files(cache) if file.stat().st_mtime > old + 1]
    opened(path, key="more")
    assert set(kept) < set(files(cache))
    assert len(files(cache)) == 2
