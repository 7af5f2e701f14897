"""A domain's records become the same rows with any number of processes and after a run that was ended."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from mini_internvl.data import Fault
from mini_internvl.data.rows import read_samples
from mini_internvl.domains import _rows, load_domain
from mini_internvl.records import Interrupted, Sample

ROWS = 1500


def write_raw(folder: Path, rows: int = ROWS, *, every: int = 100) -> Path:
    """PMC-VQA's training file: one row of ``every`` has an answer that is no choice."""
    (folder / "figures").mkdir(parents=True)
    for number in range(4):
        (folder / f"figures/{number}.jpg").write_bytes(b"")
    with (folder / "train_2.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Figure_path", "Question", "Choice A", "Choice B", "Answer"])
        for number in range(rows):
            answer = "AB"[number % 2] if number % every else "Z"
            table.writerow([f"{number // 3 % 4}.jpg", f"Is it {number}, or not?", "A: Yes", "B: No", answer])
    return folder


def convert(raw: Path, out: Path, *, domain="pmc-vqa", workers=0, should_stop=lambda: False, **options):
    """The rows of a domain, which is loaded where its name is given."""
    domain = load_domain(domain) if isinstance(domain, str) else domain
    return _rows.convert(domain, raw, out, max_faults=0.5, should_stop=should_stop, workers=workers, **options)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw") / "pmc")


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """A run that nothing ended, in one process."""
    out = tmp_path_factory.mktemp("whole")
    found = convert(raw, out)
    assert (found["train"]["rows"], found["train"]["faults"]) == (len(read_samples(out / "train.jsonl")), 15)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bytes_do_not_depend_on_the_number_of_processes(raw, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(_rows, "RECORDS", 50)
    convert(raw, tmp_path, workers=2)
    assert contents(tmp_path) == whole
    faults = [json.loads(line)["place"] for line in whole["faults.jsonl"].splitlines()]
    assert faults == [f"row {number}" for number in range(1, ROWS, 100)]


def test_a_stopped_run_goes_on(raw, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(_rows, "RECORDS", 50)
    calls, notes, seen = iter(range(170)), list[str](), list[int]()
    with pytest.raises(Interrupted, match="stopped converting train at record 171"):
        convert(raw, tmp_path, should_stop=lambda: next(calls, None) is None)
    convert(raw, tmp_path, on_note=notes.append, on_progress=seen.append)
    assert notes == [f"{tmp_path / 'train.jsonl'} goes on after 150 records"]
    assert seen[0] == 200
    assert contents(tmp_path) == whole


def test_changed_records_start_over(tmp_path, monkeypatch):
    monkeypatch.setattr(_rows, "RECORDS", 50)
    raw, out, notes = write_raw(tmp_path / "raw"), tmp_path / "rows", list[str]()
    calls = iter(range(170))
    with pytest.raises(Interrupted):
        convert(raw, out, should_stop=lambda: next(calls, None) is None)
    with (raw / "train_2.csv").open("a") as file:
        file.write("0.jpg,A new one?,A: Yes,B: No,A\n")
    convert(raw, out, on_note=notes.append)
    assert notes == [f"{out / 'train.jsonl'} was begun with other source; it starts over"]
    assert "A new one?" in (out / "train.jsonl").read_text()


def ask(image: object, number: int) -> Sample:
    """A sample about an image."""
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": f"{number}"}]
    return Sample(id=f"{number}", messages=messages, source="made")


@pytest.mark.parametrize("faulty", [False, True])
def test_images_that_the_domain_makes_start_nothing_over(tmp_path, monkeypatch, faulty):
    """Unless a record could not be used before: its image may be what came."""
    monkeypatch.setattr(_rows, "RECORDS", 10)
    raw, out, notes = tmp_path / "raw", tmp_path / "rows", list[str]()
    raw.mkdir()
    (raw / "records.csv").write_text("")
    os.utime(raw / "records.csv", (1, 1))

    def made(folder: Path, split: str):
        for number in range(100):
            path = folder / f"{number}.png"
            path.write_bytes(b"")
            yield Fault(file=folder, place="row 3", reason="no image") if faulty and number == 3 else ask(path, number)

    domain = dataclasses.replace(load_domain("pmc-vqa"), convert=made)
    calls = iter(range(35))
    with pytest.raises(Interrupted):
        convert(raw, out, domain=domain, should_stop=lambda: next(calls, None) is None)
    convert(raw, out, domain=domain, on_note=notes.append)
    path = out / "train.jsonl"
    assert notes == [
        f"{path} was begun with other source; it starts over" if faulty else f"{path} goes on after 30 records"
    ]
    assert convert(raw, out, domain=domain)["train"]["rows"] == 100 - faulty


def test_images_that_are_no_files_are_written_beside_the_rows(tmp_path):
    (tmp_path / "raw").mkdir()

    def made(folder: Path, split: str):
        yield Fault(file=folder, place="row 1", reason="no image")
        yield from (ask(Image.new("RGB", (number, 9)), number) for number in range(1, 40))

    domain = dataclasses.replace(load_domain("pmc-vqa"), convert=made)
    found = [convert(tmp_path / "raw", tmp_path / str(n), domain=domain, workers=n) for n in (1, 2)]
    assert found[0] == found[1]
    samples = read_samples(tmp_path / "2" / "train.jsonl")
    paths = [Path(one.messages[0]["content"][0]["image"]) for one in samples]
    assert [Image.open(io.BytesIO(path.read_bytes())).width for path in paths] == list(range(1, 40))


CODE = """
import sys
from pathlib import Path
from mini_internvl.domains import _rows, load_domain
_rows.RECORDS = 10
out = Path(sys.argv[2])
_rows.convert(load_domain("pmc-vqa"), Path(sys.argv[1]), out, max_faults=1, should_stop=lambda: False, workers=2)
"""


@pytest.mark.slow
def test_kills_at_random_moments_change_no_byte(tmp_path):
    raw = write_raw(tmp_path / "raw", 8 * ROWS)  # enough work to be killed in
    convert(raw, tmp_path / "whole")
    draw, kills, out = random.Random(0), 0, tmp_path / "killed"
    out.mkdir()
    journal = out / ".train.jsonl.journal"
    while True:
        process = subprocess.Popen([sys.executable, "-c", CODE, raw, out])
        if kills < 8:
            before = size = journal.stat().st_size if journal.exists() else 0
            while process.poll() is None and size <= before:  # it has begun to add
                size = journal.stat().st_size if journal.exists() else 0
                time.sleep(0.001)
            time.sleep(draw.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        assert process.wait() in (0, -signal.SIGKILL)
        if process.returncode == 0:
            break
    assert kills > 3
    assert contents(out) == contents(tmp_path / "whole")
