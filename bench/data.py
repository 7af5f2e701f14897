"""Speed and memory of conversions: files of rows, and a domain's raw records, with 1 and 2 processes.

Rows are short and share pictures, which stand by their paths; the domain is PMC-VQA, with two questions about a
picture. Every conversion runs in a process of its own, with a tenth of the rows and with all of them. Beside each
stands the same file read and written line by line by ``json`` (a table by ``csv``) alone, so that runs on different
machines compare. On a machine with other work the time of its processors (``us/row``, all processes together, without
their start) tells more than rows per second.

    python bench/data.py --rows 100000
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import write

ENDINGS = ("jsonl", "parquet", "tar")
PER_PICTURE = 2


def write_records(folder: Path, count: int) -> Path:
    """PMC-VQA's raw folder with so many questions."""
    (folder / "figures").mkdir(parents=True)
    for number in range(-(-count // PER_PICTURE)):
        (folder / f"figures/{number}.jpg").write_bytes(b"")
    with (folder / "train_2.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["index", "Figure_path", "Question", *(f"Choice {letter}" for letter in "ABCD"), "Answer"])
        for number in range(count):
            asked = f"What is shown beside the arrow that has the number {number}, and how large is it?"
            choices = ("A: The left kidney", "B: A small cyst", "C: The spleen, enlarged", "D: No change")
            table.writerow([number, f"{number // PER_PICTURE}.jpg", asked, *choices, "ABCD"[number % 4]])
    return folder


def plain(source: Path, out: Path) -> int:
    """JSON alone; tables are read by ``csv``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with source.open(newline="") as read, out.open("w") as written:
        for row in csv.DictReader(read) if source.suffix == ".csv" else map(json.loads, read):
            written.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def measure(how: str, source: Path, out: Path, workers: int) -> dict[str, float]:
    """Convert in this process."""
    if how == "plain":
        work = plain
    elif how == "rows":
        from mini_internvl.data.convert import Settings, convert

        def work(source: Path, out: Path) -> int:
            return convert(source, out, inside=False, settings=Settings(workers=workers)).read
    else:
        from mini_internvl.data.convert import Settings
        from mini_internvl.domains import load_domain
        from mini_internvl.domains._rows import convert_split

        def work(source: Path, out: Path) -> int:
            settings = Settings(workers=workers)
            done = convert_split(load_domain(how), source, "train", out, False, settings)
            return done.rows * PER_PICTURE

    began, before = time.perf_counter(), os.times()
    rows = work(source, out)
    seconds, after = time.perf_counter() - began, os.times()
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
    own = after.user + after.system - before.user - before.system
    return {"rows": rows, "seconds": seconds, "peak": peak, "own": own}


def run(how: str, source: Path, out: Path, workers: int) -> dict[str, float]:
    """Measure in a process of its own, whose workers' time counts."""
    command = [sys.executable, __file__, "--one", how, str(source), str(out), str(workers)]
    before = os.times()
    told = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ).stdout
    after = os.times()
    whole = after.children_user + after.children_system - before.children_user - before.children_system
    return {**json.loads(told), "whole": whole}


def compare(how: str, tenth: Path, whole: Path, counts: tuple[int, int], endings: tuple[str, ...]) -> None:
    """Print one line for each kind of file, and check that the bytes are the same."""
    table = "train_2.csv" if tenth.is_dir() else ""
    base = run("plain", whole / table, whole.parent / "plain" / "rows.jsonl", 1)
    alone, speed = base["own"] / base["rows"] * 1e6, base["rows"] / base["seconds"]
    print(f"{how}: {counts[1]:,} records; read and written alone {alone:.1f} us/row, {speed:,.0f} rows/s")
    for ending in endings:
        found, seconds = set[str](), list[float]()
        for workers in (1, 2):
            out = whole.parent / f"out-{how}-{workers}"
            small = run(how, tenth, out / f"tenth.{ending}", workers)
            large = run(how, whole, out / f"whole.{ending}", workers)
            start = small["whole"] - (large["whole"] - small["whole"]) / 9  # what a process takes before its first row
            cost, own = ((large["whole"] - start) / counts[1] * 1e6, large["own"] / counts[1] * 1e6)
            print(
                f"  .{ending:8} {workers} workers {counts[1] / large['seconds']:9,.0f} rows/s {cost:6.1f} us/row, "
                f"{cost / alone:4.1f} times that alone; {own:.1f} us/row in the process that reads and writes; "
                f"peak {small['peak']:.0f} MB, {large['peak']:.0f} MB ({large['peak'] / small['peak']:.2f} times)",
                flush=True,
            )
            seconds.append(large["seconds"])
            with (out / f"whole.{ending}").open("rb") as file:
                found.add(hashlib.file_digest(file, "sha256").hexdigest())
        print(f"  .{ending:8} 2 workers are {seconds[0] / seconds[1]:.2f} times as fast as 1")
        assert len(found) == 1, f"the bytes of .{ending} depend on the number of workers"


def main() -> None:
    """Measure all and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--endings", nargs="+", default=ENDINGS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        how, source, out, workers = options.one
        print(json.dumps(measure(how, Path(source), Path(out), int(workers))))
        return
    counts = (options.rows // 10, options.rows)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{count}" / "rows.jsonl" for count in counts]
        for path, count in zip(files, counts, strict=True):
            write(path, count)
        compare("rows", *files, counts, tuple(options.endings))
        raw = [write_records(Path(folder) / f"raw-{count}", count) for count in counts]
        compare("pmc-vqa", *raw, counts, ("jsonl",))


if __name__ == "__main__":
    main()
