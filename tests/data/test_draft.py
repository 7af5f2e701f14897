"""A conversion goes on where it was ended, at whatever moment, and ends with the bytes of one that was not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mini_internvl.data import DataError
from mini_internvl.data import convert as converting
from mini_internvl.data.convert import Settings, convert
from mini_internvl.data.draft import Shards

KINDS = ("jsonl", "parquet", "tar")


class Stopped(Exception):
    """What stands for a kill within one process."""


def write_source(folder: Path, rows: int) -> Path:
    """Rows about one picture, every 50th of them none."""
    folder.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(folder / "a.png")
    lines = [
        {"id": number, "image": "a.png", "conversations": [{"from": "human", "value": f"What is {number}?"}, answer]}
        for number, answer in ((number, {"from": "gpt", "value": f"{number}" * (number % 7)}) for number in range(rows))
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row if row["id"] % 50 else {"id": 1}) + "\n" for row in lines))
    return path


def contents(folder: Path) -> dict[str, str]:
    """The files of a folder, by their hashes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def lose(path: Path, lost: int) -> None:
    """Cut off what a power failure may take of a draft or a journal: what was not flushed."""
    if path.exists():
        content = path.read_bytes()
        flushed = content[: content.rfind(b'{"closed"')].count(b"\n") if b'{"closed"' in content else 0
        least = sum(map(len, content.splitlines(keepends=True)[:flushed]))
        os.truncate(path, max(least, len(content) - lost))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    pytest.importorskip("pyarrow")
    return write_source(tmp_path_factory.mktemp("source") / "rows", 130)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Kind and shards -> the files of a run that nothing ended."""
    found = {}
    for kind in KINDS:
        for rows in (0, 37):
            folder = tmp_path_factory.mktemp("whole")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(converting, "BATCH_ROWS", 10)
                patch.setattr(converting, "INSIDE_ROWS", 10)
                done = convert(source, folder / f"rows.{kind}", settings=Settings(skip=True, shards=Shards(rows=rows)))
            assert (done.rows, done.faulty, len(done.shards)) == (127, 3, 4 if rows else 1)
            found[kind, rows] = contents(folder)
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    rows=st.sampled_from([0, 37]),
    stops=st.lists(st.integers(1, 16), max_size=3),
    lost=st.tuples(st.integers(0, 3000), st.integers(0, 400)),
    damaged=st.none() | st.integers(0, 3000),
)
def test_it_goes_on_from_any_state_of_its_files(source, whole, tmp_path_factory, kind, rows, stops, lost, damaged):
    out = tmp_path_factory.mktemp("out") / f"rows.{kind}"
    draft, journal = (out.with_name(f".{out.name}.{name}") for name in ("draft", "journal"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(converting, "BATCH_ROWS", 10)
        patch.setattr(converting, "INSIDE_ROWS", 10)
        for stop in stops:
            calls = iter(range(stop))

            def count(records: int, calls=calls) -> None:
                if next(calls, None) is None:
                    raise Stopped

            options = Settings(skip=True, shards=Shards(rows=rows), on_progress=count)
            try:
                convert(source, out, settings=options)
                break
            except Stopped:
                pass
            for path, bytes_lost in zip((draft, journal), lost, strict=True):
                lose(path, bytes_lost)
            if damaged is not None and draft.exists() and damaged < draft.stat().st_size:
                with draft.open("r+b") as file:
                    file.seek(damaged)
                    file.write(b"\0")
        else:
            done = convert(source, out, settings=Settings(skip=True, shards=Shards(rows=rows)))
            assert (done.rows, done.faulty, [fault.place for fault in done.faults]) == (
                127,
                3,
                ["line 1", "line 51", "line 101"],
            )
    assert contents(out.parent) == whole[kind, rows]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [True, False])
def test_a_kill_while_a_full_shard_is_finished(source, whole, tmp_path, kind, named, monkeypatch):
    monkeypatch.setattr(converting, "BATCH_ROWS", 10)
    monkeypatch.setattr(converting, "INSIDE_ROWS", 10)
    out = tmp_path / f"rows.{kind}"
    options = Settings(skip=True, shards=Shards(rows=37))
    finish = converting.Draft._finish

    def end(self: converting.Draft) -> str:
        if named:
            finish(self)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(converting.Draft, "_finish", end)
        with pytest.raises(Stopped):
            convert(source, out, settings=options)
    assert out.with_name(f"rows-000000.{kind}").exists() == named
    convert(source, out, settings=options)
    assert contents(tmp_path) == whole[kind, 37]


def stopped(source: Path, out: Path, **options) -> None:
    """A conversion that ends after some pieces."""

    def count(records: int) -> None:
        if records >= 60:
            raise Stopped

    with pytest.raises(Stopped):
        convert(source, out, settings=Settings(skip=True, on_progress=count, **options))


def test_another_source_and_other_options_start_over(source, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "BATCH_ROWS", 10)
    rows, notes = tmp_path / "source.jsonl", list[str]()
    rows.write_bytes(source.read_bytes())
    out = tmp_path / "out" / "rows.jsonl"
    stopped(rows, out, shards=Shards(rows=20))
    assert out.with_name("rows-000001.jsonl").exists()
    done = convert(rows, out, settings=Settings(skip=True, on_note=notes.append))
    assert (done.rows, done.shards) == (127, [out])
    assert [path.name for path in out.parent.iterdir()] == ["rows.jsonl"]
    out.unlink()
    stopped(rows, out)
    rows.write_text(rows.read_text() + json.dumps({"id": 1}) + "\n")
    assert convert(rows, out, settings=Settings(skip=True, on_note=notes.append)).faulty == 4
    assert notes == [f"{out} was begun with other {what}; it starts over" for what in ("shards", "source")]


@pytest.mark.parametrize("finished", [False, True])
def test_rows_that_were_left_out_count_without_skip_too(source, tmp_path, monkeypatch, finished):
    """What a run with --skip has left out stops one without it, which would else pass over it in silence."""
    monkeypatch.setattr(converting, "BATCH_ROWS", 10)
    out = tmp_path / "rows.jsonl"
    if finished:  # a kill came before the journal was deleted
        monkeypatch.setattr(converting, "forget", lambda out: None)
        convert(source, out, settings=Settings(skip=True))
    else:
        stopped(source, out)
    with pytest.raises(DataError, match=r"rows.jsonl:1: no format reads .*--skip"):
        convert(source, out)
    assert convert(source, out, settings=Settings(skip=True)).rows == 127


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of resources there")
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_nothing_in_the_way_of_the_next_call(source, whole, tmp_path, kind, begun, monkeypatch):
    """In the same process: no lock, and none of the file's drafts."""
    import resource

    for name in ("BATCH_ROWS", "INSIDE_ROWS"):
        monkeypatch.setattr(converting, name, 10)
    out = tmp_path / f"rows.{kind}"
    if begun:
        stopped(source, out)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))  # bytes of a file, as if the disk was full
    try:
        with pytest.raises(OSError, match="File too large"):
            convert(source, out, settings=Settings(skip=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name for path in tmp_path.iterdir()} <= {f".{out.name}.draft", f".{out.name}.journal"}
    convert(source, out, settings=Settings(skip=True))
    assert contents(tmp_path) == whole[kind, 0]


def test_what_goes_on_is_told(source, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "BATCH_ROWS", 10)
    out, notes, seen = tmp_path / "rows.jsonl", list[str](), list[int]()
    stopped(source, out)
    convert(source, out, settings=Settings(skip=True, on_note=notes.append, on_progress=seen.append))
    assert notes == [f"{out} goes on after 60 records"]
    assert seen == [70, 80, 90, 100, 110, 120, 130]


def test_a_file_that_came_in_between_is_not_replaced(source, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "BATCH_ROWS", 10)
    out = tmp_path / "rows.jsonl"
    stopped(source, out)
    out.write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        convert(source, out, settings=Settings(skip=True))
    assert out.read_text() == "mine"


def test_one_process_at_a_time_writes_a_file(source, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "BATCH_ROWS", 10)
    out = tmp_path / "rows.jsonl"

    def count(records: int) -> None:
        with pytest.raises(DataError, match="is in use by process"):
            convert(source, out, settings=Settings(skip=True))

    assert convert(source, out, settings=Settings(skip=True, on_progress=count)).rows == 127


CODE = """
import sys
from mini_internvl.data import convert as converting
from mini_internvl.data.draft import Shards
converting.BATCH_ROWS = converting.INSIDE_ROWS = 10
settings = converting.Settings(skip=True, workers=int(sys.argv[4]), shards=Shards(rows=int(sys.argv[3])))
converting.convert(sys.argv[1], sys.argv[2], settings=settings)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rows", [0, 700])
@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_random_moments_change_no_byte(tmp_path, kind, rows):
    pytest.importorskip("pyarrow")
    source = write_source(tmp_path / "source", 6000)
    draw, kills = random.Random(kind), 0
    for name, workers in (("killed", 2), ("whole", 1)):
        out = tmp_path / name / f"rows.{kind}"
        while True:
            process = subprocess.Popen([sys.executable, "-c", CODE, source, out, str(rows), str(workers)])
            if name == "killed" and kills < 12:
                journal, size = out.with_name(f".{out.name}.journal"), -1
                before = journal.stat().st_size if journal.exists() else 0
                while process.poll() is None and size <= before:  # it has begun to add
                    size = journal.stat().st_size if journal.exists() else -1
                    time.sleep(0.001)
                time.sleep(draw.random() * 0.1)
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                if not journal.exists() and list(out.parent.glob("rows*")):  # it had ended just before
                    break
            assert process.wait() in (0, -signal.SIGKILL)
            if process.returncode == 0:
                break
    assert kills > 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
