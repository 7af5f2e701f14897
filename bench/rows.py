"""Rows per second and memory of indexing a file of many rows, and of opening it again.

Each row is read, checked and measured for nano: its text in tokens, its picture from the header; rows share pictures,
whose headers are read once in each process. A tenth of the rows is indexed in one process and again with a picture for
each row. Beside it: ``json.loads`` of every line into a list, which checks nothing. Each in a process of its own.

    python bench/rows.py --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

BATCH = 32
PICTURES = 1000


def write(path: Path, count: int, pictures: int = PICTURES) -> None:
    """Short rows in LLaVA's shape about so many pictures, PNG and JPEG."""
    draw = random.Random(0)
    words = ("red", "green", "left", "right", "above", "car", "tree", "house", "road", "small", "large", "three")
    images = path.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    names = [f"images/{number}.{('png', 'jpg')[number % 2]}" for number in range(pictures)]
    for name in names:
        Image.new("RGB", (draw.randint(20, 600), draw.randint(20, 600))).save(path.parent / name)
    with path.open("w") as file:
        for number in range(count):
            question, answer = (" ".join(draw.choices(words, k=draw.randint(4, 20))) for _ in range(2))
            turns = [{"from": "human", "value": f"<image>\n{question}?"}, {"from": "gpt", "value": f"{answer}."}]
            file.write(json.dumps({"id": number, "image": names[number % pictures], "conversations": turns}) + "\n")


def resident() -> float:
    """Megabytes of this process's own memory, without mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1e3


def measure(how: str, path: Path, workers: int) -> dict[str, float]:
    """Open the rows and read the first batch in this process."""
    from mini_internvl.data.sources import open_source
    from mini_internvl.engine.hub import NANO
    from mini_internvl.inputs import chat
    from mini_internvl.inputs.prepare import Processor
    from mini_internvl.inputs.tokenizer_files import load_tokenizer
    from mini_internvl.model.checkpoint import read_config
    from mini_internvl.recipes import SourceRecipe
    from mini_internvl.train.processor import SampleProcessor

    config = read_config(NANO)
    template = chat.find_template(config.template)
    nano = Processor(tokenizer=load_tokenizer(NANO), template=template, config=config)
    process = SampleProcessor(processor=nano, max_tiles=6, max_length=4096)
    recipe, before, began = SourceRecipe(kind="rows", path=str(path)), resident(), time.perf_counter()
    if how == "index":
        source = open_source(recipe, process.measure, key=process.fingerprint, workers=workers)
        opened = time.perf_counter()
        batch = [source[number] for number in range(BATCH)]
    else:
        with path.open() as lines:
            held = [json.loads(line) for line in lines]
        opened = time.perf_counter()
        order = list(range(len(held)))
        random.Random(0).shuffle(order)
        batch = [held[place] for place in order[:BATCH]]
    assert len(batch) == BATCH
    return {"seconds": opened - began, "growth": resident() - before}


def main() -> None:
    """Measure all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.file, options.workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        whole, tenth, own = (Path(folder) / name / "rows.jsonl" for name in ("whole", "tenth", "own"))
        write(whole, options.rows)
        write(tenth, options.rows // 10)
        write(own, options.rows // 10, options.rows // 10)
        print(f"{options.rows:,} rows, {whole.stat().st_size / 1e6:.0f} MB")
        for name, how, path, workers in (
            ("index, 2 workers", "index", whole, 2),
            ("opened again", "index", whole, 2),
            ("json.loads into a list", "list", whole, 0),
            ("a tenth, this process", "index", tenth, 0),
            ("a tenth, a picture each", "index", own, 0),
        ):
            command = [sys.executable, __file__, "--one", how, "--file", str(path), "--workers", str(workers)]
            environment = {**os.environ, "MINIVL_CACHE": f"{folder}/cache"}
            done = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            )
            rows = options.rows if path == whole else options.rows // 10
            speed, growth = f"{rows / done['seconds']:12,.0f} rows/s", f"own memory +{done['growth']:.0f} MB"
            print(f"{name:24} {done['seconds']:7.2f} s  {speed}  {growth}", flush=True)


if __name__ == "__main__":
    main()
