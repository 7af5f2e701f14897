"""Rows per second and memory of `minivl data convert`, from JSON lines to each kind of file, with 1 and 2 processes.

Rows are short and share pictures, which stand by their paths. Every conversion runs in a process of its own; the peak
is the memory of that process alone, without its workers.

    python bench/data.py --rows 100000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import write


def measure(source: Path, out: Path, workers: int) -> dict[str, float]:
    """Convert in this process."""
    from mini_internvl.data.convert import Settings, convert

    began = time.perf_counter()
    done = convert(source, out, inside=False, settings=Settings(workers=workers))
    assert not done.faults
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return {"rows": done.rows, "seconds": time.perf_counter() - began, "peak": peak}


def main() -> None:
    """Measure all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        source, out, workers = options.one
        print(json.dumps(measure(Path(source), Path(out), int(workers))))
        return
    with tempfile.TemporaryDirectory() as folder:
        for count in (options.rows // 10, options.rows):
            source = Path(folder) / f"{count}" / "rows.jsonl"
            write(source, count)
            print(f"{count:,} rows, {source.stat().st_size / 1e6:.0f} MB")
            for ending in ("jsonl", "parquet", "tar"):
                found = set()
                for workers in (1, 2):
                    out = source.parent / f"out-{workers}" / f"rows.{ending}"
                    command = [sys.executable, __file__, "--one", str(source), str(out), str(workers)]
                    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
                    done = json.loads(told)
                    with out.open("rb") as file:
                        found.add(hashlib.file_digest(file, "sha256").hexdigest())
                    print(
                        f"  .{ending:8} {workers} workers  {done['rows'] / done['seconds']:9,.0f} rows/s  "
                        f"peak {done['peak']:.0f} MB",
                        flush=True,
                    )
                assert len(found) == 1, f"the bytes of .{ending} depend on the number of workers"


if __name__ == "__main__":
    main()
