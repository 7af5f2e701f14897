"""The family with random weights on a CPU: loading, memory, seconds a tile, tokens a second, beside transformers.

    python bench/family.py [1B 2.5-1B ...] [--dtype float32] [--tiles 1] [--tokens 16] [--rounds 1]

Random weights in bfloat16 are written once into a folder, in the official layout for this package and in the native one
for transformers (the `dev` extra), and both read the same files. Each measurement is a process of its own, and the two
sides take turns. It loads, reads every weight once, so that memory-mapping hides nothing, reads `--tiles` tiles and
answers a prompt of one tile greedily; `--tiles 0` only loads. Memory is the process's peak above what it had after its
imports. Random weights take the same time as trained ones; their answers say nothing. A CPU without bfloat16 of its own
needs minutes for a tile in it: give `--dtype float32` there. Transformers has no class for Flash models; their tiles
get all tokens here. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
SIZES = ("1B", "2.5-1B", "3-1B", "3.5-1B", "2B")
COLUMNS = ("load s", "and read all s", "weights GB", "peak / weights", "peak GB, answered", "tile s", "first token s")
COLUMNS += ("tokens/s",)
LOADING = 4  # of them
WORDS = 32  # tokens of a prompt beside its tile
SAME_SIZE = {2: torch.int16, 4: torch.int32}  # integers that are read as fast as the weights


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process measures."""

    side: str
    folder: str
    dtype: str
    tiles: int
    tokens: int  # of the answer


@dataclass(frozen=True, kw_only=True)
class Side:
    """One program's three steps; pixels are (tiles, 3, 448, 448)."""

    load: Callable[[], Any]
    encode: Callable[[Any, Tensor], Any]
    answer: Callable[[Any, list[int], Tensor], list[float]]  # moments at which the tokens of the answer came


def ours(task: Task) -> Side:
    """This package."""
    from mini_internvl.engine.backends.torch import TorchBackend
    from mini_internvl.engine.images import ImageInput
    from mini_internvl.engine.requests import Request
    from mini_internvl.engine.sampling import GenerationConfig
    from mini_internvl.engine.scheduler import Scheduler
    from mini_internvl.model.checkpoint import load_model

    def answer(model: Any, ids: list[int], pixels: Tensor) -> list[float]:
        scheduler = Scheduler(TorchBackend(model))
        request = Request(
            ids=ids,
            config=GenerationConfig(max_new_tokens=task.tokens),
            stop_ids=frozenset(),
            images=[ImageInput(key="image", pixel_values=pixels)],
        )
        return [time.perf_counter() for _ in scheduler.steps(scheduler.submit(request))]

    return Side(
        load=lambda: load_model(task.folder, dtype=task.dtype).eval(),
        encode=lambda model, pixels: model.encode_images(pixels),
        answer=answer,
    )


class Clock:
    """What transformers calls a streamer: it is given the prompt, and then each token as it comes."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, value: Tensor) -> None:
        self.moments.append(time.perf_counter())

    def end(self) -> None:
        pass


def theirs(task: Task) -> Side:
    """Transformers' class for the native layout."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind = transformers.InternVLForConditionalGeneration

    def answer(model: Any, ids: list[int], pixels: Tensor) -> list[float]:
        clock = Clock()
        model.generation_config.eos_token_id = None
        given = torch.tensor([ids])
        model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            pixel_values=pixels,
            max_new_tokens=task.tokens,
            do_sample=False,
            streamer=clock,
        )
        return clock.moments[1:]

    return Side(
        load=lambda: kind.from_pretrained(task.folder, dtype=getattr(torch, task.dtype)).eval(),
        encode=lambda model, pixels: model.get_image_features(pixel_values=pixels),
        answer=answer,
    )


SIDES: dict[str, Callable[[Task], Side]] = {"mini-internvl": ours, "transformers": theirs}


@torch.no_grad()
def measure(task: Task) -> dict[str, float]:
    """One side's times and memory, in this process."""
    from mini_internvl.model.checkpoint import image_token_id, read_config

    side = SIDES[task.side](task)
    folder = Path(task.folder)
    config = read_config(folder)
    context = image_token_id(folder, config)
    assert context is not None
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, began = memory("VmRSS"), time.perf_counter()
    model = side.load()
    loaded = time.perf_counter()
    weights = list(model.parameters())
    for weight in weights:
        weight.view(SAME_SIZE[weight.itemsize]).max()
    row = {"load": loaded - began, "read": time.perf_counter() - began, "loaded_peak": memory("VmHWM") - before}
    row["weights"] = sum(weight.nbytes for weight in weights)
    if not task.tiles:
        return row
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(task.tiles, 3, config.image_size, config.image_size, generator=draw)
    pixels = pixels.to(weights[0].dtype)
    began = time.perf_counter()
    side.encode(model, pixels)
    row["tile"] = (time.perf_counter() - began) / task.tiles
    words = torch.randint(0, 1000, (WORDS,), generator=draw).tolist()
    began = time.perf_counter()
    moments = side.answer(model, [context] * config.tokens_per_tile + words, pixels[:1])
    assert len(moments) == task.tokens
    row |= {"first": moments[0] - began, "rate": (task.tokens - 1) / (moments[-1] - moments[0])}
    return {**row, "peak": memory("VmHWM") - before}


def memory(key: str) -> int:
    """Bytes of this process, by a name in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def apart(task: Task) -> dict[str, float]:
    """Measured in a process of its own, with its files in the page cache."""
    for file in sorted(Path(task.folder).glob("*.safetensors")):
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(task))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def prepare(size: str, folder: Path) -> dict[str, Path]:
    """Side -> its folder, written once."""
    from mini_internvl.model.checkpoint import load_model, save_model
    from mini_internvl.model.sizes import FLASH

    official, native = folder / size, folder / f"{size}-native"
    if not official.exists():
        subprocess.run([sys.executable, ROOT / "scripts/full_size.py", size, official], check=True)
    if size.endswith(FLASH):
        return {"mini-internvl": official}
    if not native.exists():
        save_model(load_model(official, dtype="bfloat16"), native, layout="native")
    return {"mini-internvl": official, "transformers": native}


def compare(size: str, given: argparse.Namespace) -> None:
    """One size's two rows of the table: medians over the rounds."""
    rows: dict[str, list[dict[str, float]]] = {}
    for _ in range(given.rounds):
        for side, folder in prepare(size, given.folder).items():
            task = Task(side=side, folder=str(folder), dtype=given.dtype, tiles=given.tiles, tokens=given.tokens)
            rows.setdefault(side, []).append(apart(task))
    for side, found in rows.items():
        m = {key: statistics.median(row[key] for row in found) for key in found[0]}
        cells = [f"{m['load']:.2f}", f"{m['read']:.2f}", f"{m['weights'] / 1e9:.2f}"]
        cells.append(f"{m['loaded_peak'] / m['weights']:.2f}")
        if given.tiles:
            cells += [f"{m['peak'] / 1e9:.2f}", *(f"{m[key]:.2f}" for key in ("tile", "first", "rate"))]
        print(f"| {size} | {side} | {' | '.join(cells)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    from mini_internvl.model.sizes import size_names

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"of {', '.join(size_names())}; {' '.join(SIZES)}")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the loaded weights")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/minivl-family"), help="of the written weights")
    parser.add_argument("--tiles", type=int, default=1, help="0: only loading")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure:
        print(json.dumps(measure(Task(**json.loads(given.measure)))))
        return
    if unknown := set(given.sizes) - set(size_names()):
        parser.error(f"unknown size {', '.join(sorted(unknown))}; known: {', '.join(size_names())}")
    print(f"{given.dtype}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
          f"{torch.backends.cpu.get_cpu_capability()}, median of {given.rounds}; load before: {busy()}\n")  # fmt: skip
    columns = COLUMNS if given.tiles else COLUMNS[:LOADING]
    print(f"| model | program | {' | '.join(columns)} |\n|---|---|{'---:|' * len(columns)}", flush=True)
    for size in given.sizes or SIZES:
        compare(size, given)
    print(f"\nload after: {busy()}")


def busy() -> str:
    """Processes that ran or waited to, on average over 1, 5 and 15 minutes."""
    return " ".join(f"{one:.1f}" for one in os.getloadavg())


if __name__ == "__main__":
    main()
