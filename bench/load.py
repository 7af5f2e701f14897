"""Loading a full-shape 1B in bfloat16: time and peak memory beside transformers on the same weights.

    python bench/load.py [--size 1B] [--folder /tmp/full] [--rounds 3]

Random weights in the official layout are written first, and converted to the native layout for transformers (the `dev`
extra). Each measurement is a process of its own that loads and then reads every weight once, so that memory-mapping
hides nothing; the two sides take turns. Memory is the process's peak above what it had after its imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

OURS = """
from mini_internvl.model.checkpoint import load_model
load = lambda folder: load_model(folder, dtype="bfloat16")
"""
THEIRS = """
import torch, transformers
transformers.logging.set_verbosity_error()
from transformers import InternVLForConditionalGeneration
load = lambda folder: InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
"""
MEASURE = """
import json, resource, sys, time
import torch
{imports}
def memory(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
began = time.perf_counter()
model = load(sys.argv[1])
loaded = time.perf_counter() - began
with torch.no_grad():
    total = sum(float(p.view(torch.int16).max()) for p in model.parameters())
print(json.dumps({{"load": loaded, "read": time.perf_counter() - began, "peak": memory("VmHWM") - before,
                   "weights": sum(p.nbytes for p in model.parameters())}}))
"""


def measure(imports: str, folder: Path) -> dict[str, float]:
    """One process, one measurement."""
    code = MEASURE.format(imports=imports)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def prepare(size: str, folder: Path) -> tuple[Path, Path]:
    """The official and the native folder, written once."""
    official, native = folder / size, folder / f"{size}-native"
    scripts = Path(__file__).parent.parent / "scripts"
    tokenizers = Path(__file__).parent.parent / "tests/golden/data/tokenizers"
    kind = {"1B": "qwen2", "2B": "internlm2", "4B": "phi3"}[size]
    if not official.exists():
        subprocess.run(
            [sys.executable, scripts / "full_size.py", size, official, "--tokenizer", tokenizers / kind], check=True
        )
    if not native.exists():
        subprocess.run(
            [sys.executable, "-m", "mini_internvl", "convert", official, native, "--to", "native"], check=True
        )
    return official, native


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("1B", "2B", "4B"), default="1B")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/full"))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    official, native = prepare(given.size, given.folder)
    sides = {"mini-internvl": (OURS, official), "transformers": (THEIRS, native)}
    for imports, folder in sides.values():
        measure(imports, folder)  # the files are in the page cache from here on, for both
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(given.rounds):
        for name, (imports, folder) in sides.items():
            rows[name].append(measure(imports, folder))
    middle = {n: {k: statistics.median(r[k] for r in found) for k in found[0]} for n, found in rows.items()}
    print(f"{given.size}, bfloat16, median of {given.rounds}")
    print(f"{'':14} {'load':>8} {'+ read all':>11} {'peak':>9} {'peak / weights':>15}")
    for name, m in middle.items():
        share = m["peak"] / m["weights"]
        print(f"{name:14} {m['load']:6.2f} s {m['read']:9.2f} s {m['peak'] / 1e9:6.2f} GB {share:14.2f}x")
    ours, theirs = middle["mini-internvl"], middle["transformers"]
    print(f"{'ratio':14} {theirs['load'] / ours['load']:7.2f}x {theirs['read'] / ours['read']:10.2f}x "
          f"{theirs['peak'] / ours['peak']:8.2f}x   (transformers / ours)")  # fmt: skip


if __name__ == "__main__":
    main()
