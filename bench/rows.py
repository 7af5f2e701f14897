"""Seconds, rows per second and memory of opening a file of many rows, shuffling it and reading the first batch.

Beside it, in a process of its own: ``json.loads`` of every line into a list, which checks nothing.

    python bench/rows.py --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH = 32


def write(path: Path, count: int) -> None:
    """Short rows in LLaVA's shape about 1,000 images."""
    draw = random.Random(0)
    words = ("red", "green", "left", "right", "above", "car", "tree", "house", "road", "small", "large", "three")
    images = path.parent / "images"
    images.mkdir()
    for number in range(1000):
        (images / f"{number}.png").touch()
    with path.open("w") as file:
        for number in range(count):
            question, answer = (" ".join(draw.choices(words, k=draw.randint(4, 20))) for _ in range(2))
            turns = [{"from": "human", "value": f"<image>\n{question}?"}, {"from": "gpt", "value": f"{answer}."}]
            file.write(
                json.dumps({"id": number, "image": f"images/{number % 1000}.png", "conversations": turns}) + "\n"
            )


def resident() -> float:
    """Megabytes of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def measure(how: str, path: Path) -> dict[str, float]:
    """Read the first batch in this process."""
    from mini_internvl.data.sources import open_source
    from mini_internvl.recipes import SourceRecipe

    before, began = resident(), time.perf_counter()
    if how == "rows":
        source = open_source(SourceRecipe(kind="rows", path=str(path)))
        batch = [source[number] for number in range(BATCH)]
    else:
        with path.open() as lines:
            held = [json.loads(line) for line in lines]
        order = list(range(len(held)))
        random.Random(0).shuffle(order)
        batch = [held[place] for place in order[:BATCH]]
    assert len(batch) == BATCH
    return {"seconds": time.perf_counter() - began, "growth": resident() - before}


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write(path, options.rows)
        print(f"{options.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB")
        for how, name in (("rows", "mini_internvl, every row checked"), ("list", "json.loads into a list")):
            command = [sys.executable, __file__, "--one", how, "--file", str(path)]
            done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            speed = options.rows / done["seconds"]
            print(f"{name:36} {done['seconds']:6.1f} s  {speed:9,.0f} rows/s  resident +{done['growth']:.0f} MB")


if __name__ == "__main__":
    main()
