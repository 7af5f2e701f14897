"""Training on one CUDA GPU: step time, tokens/s, model FLOP utilisation and memory, beside a loop around transformers.

Run ``python bench/gpu.py``, on one GPU with bfloat16 and 80 GB; it takes a few minutes and downloads nothing. Weights
are random, samples are drawn (``peers.py``), and each way is a process of its own. Two settings:

- 1B, full: float32 weights, bfloat16 arithmetic, all parts train, packed, on the general mix of ``packing.py``. The
  padded loop takes batches of 1, 2 and 4, sorted by length within a step. Losses of both must agree before.
- 4B, encoder frozen: bfloat16 weights, two samples of 2,114 tokens a step, as NeMo AutoModel measures InternVL3.5-4B
  (5,953 tokens/s and 64 GiB on each of eight H100, published; ``published`` repeats it).

``mfu`` is the work of encoder and decoder, forward and backward, over the dense peak of the card; what activation
checkpointing computes again does not count. ``planned_gb`` is what ``minivl plan`` predicts, without the CUDA context,
beside ``peak_gb``, the most that torch's allocator held, and ``tensors_gb``, the tensors in it. Blocks of the decoder
are checkpointed where the plan says that the setting does not fit otherwise. Rows are JSON lines, printed and written
to ``--output``.
``--tiny --device cpu`` goes the same way with nano's shape, in one process, to try it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peers import Task, apart, bench_stage, check, draw, measure, official, packs, read_shape, supervised, write_models

from mini_internvl.model.flops import count_flops
from mini_internvl.model.sizes import shapes_only
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import Recipe
from mini_internvl.records import Example, Size
from mini_internvl.train.machines import GPUS, Machine, find_machine
from mini_internvl.train.parts import set_trainable
from mini_internvl.train.plan import PROCESS, Planner
from mini_internvl.train.workload import made

LARGEST_DIFFERENCE = 1e-4  # between losses in float32
PUBLISHED = {"4B, encoder frozen": 5953}  # tokens/s/GPU of the closest setting that was published
Setting = tuple[str, str, Task, tuple[int, ...]]  # its name, the model's, our task, rows of a batch for the other side


def settings(device: str, tiny: bool) -> list[Setting]:
    """What is measured; of ``tiny`` the same with little of everything."""
    base = Task(folder="", device=device, precision="bf16" if device == "cuda" else "fp32", steps=1 if tiny else 4)
    small = {"samples": 2, "fewer_tiles": 6, "shorter_texts": 16, "pack_tokens": 512, "pack_tiles": 8}
    mixed = replace(base, **(small if tiny else {"samples": 32, "pack_tokens": 16384, "pack_tiles": 48}))
    alike = {"samples": 2, "tokens": 100, "tiles": 3} if tiny else {"samples": 2, "tokens": 2114, "tiles": 7}
    pair = replace(
        base, mix="alike", train=("projector", "llm"), weights="float32" if tiny else "bfloat16", **alike,
        pack_tokens=2 * alike["tokens"], pack_tiles=2 * alike["tiles"],
    )  # fmt: skip
    one, four = ("nano", "nano") if tiny else ("1B", "4B")
    return [("1B, full", one, mixed, (1,) if tiny else (1, 2, 4)), ("4B, encoder frozen", four, pair, (2,))]


def sizes(examples: list[Example]) -> list[Size]:
    return [Size(tokens=len(e.input_ids), supervised=supervised(e), tiles=len(e.tiles)) for e in examples]


def step_flops(task: Task) -> float:
    """Useful operations of a mean step: padding, and what is computed again, left out."""
    config = read_shape(task)
    with shapes_only():
        model = InternVL(config)
    set_trainable(model, bench_stage(task).parts())
    measured = [example for step in draw(task, config)[1:] for example in step]
    return count_flops(model).step(sizes(measured)).useful / task.steps


def planned(task: Task, machine: Machine) -> float:
    """Bytes that ``minivl plan`` predicts: of a GPU without its context, as ``peak_gb`` is."""
    stage = bench_stage(task)
    examples = [example for step in draw(task, read_shape(task)) for example in step]
    batches = [batch for step in draw(task, read_shape(task)) for batch in packs(task, step)]
    planner, work = Planner(machine), made(stage, examples, told="drawn")
    weights = {"float32": "fp32", "bfloat16": "bf16"}[task.weights]
    folder = str(Path(task.folder) / "official")
    recipe = Recipe(name="bench", stages=(stage,), model=folder, precision=task.precision, weights=weights)
    plans = [planner.plan_stage(recipe, 0, work=work, batch=batch) for batch in _largest(batches)]
    return max(plan.total - (plan.memory[PROCESS] if machine.kind == "cuda" else 0) for plan in plans)


def _largest(batches: list[Any]) -> list[Any]:
    """Packs of most tokens and of most tiles."""
    return [max(batches, key=lambda b: b.input_ids.numel()), max(batches, key=lambda b: len(b.tiles))]


def run_setting(setting: Setting, folder: Path, machine: Machine, tiny: bool) -> Iterator[dict[str, Any]]:
    """A row for each way; SystemExit where both do not compute the same loss."""
    name, model, task, rows = setting
    dtype = task.weights
    write_models(official(model), folder, dtype=dtype, device=task.device)
    task = replace(task, folder=str(folder))
    run = (lambda do, task: do(task)) if tiny else apart
    common: dict[str, Any] = {"setting": name, "model": model}
    if dtype == "float32":
        found = run(check, replace(task, samples=2, steps=1))
        if found.get("difference", 1.0) > LARGEST_DIFFERENCE:
            raise SystemExit(f"{name}: both ways do not compute the same loss: {found}")
        common["loss_differs"] = found["difference"]
    needed = planned(task, machine)
    if machine.memory is not None and needed > 0.95 * machine.memory:
        task = replace(task, checkpointing=("llm",))
        needed = planned(task, machine)
    work, peak = step_flops(task), _peak(machine)
    for way in (0, *rows):
        row = common | {"way": f"padded, {way} sorted" if way else "packed", "checkpointing": bool(task.checkpointing)}
        row |= run(measure, replace(task, rows=way, sort=True))
        if "step_s" in row:
            row["tflops"] = round(work / row["step_s"] / 1e12, 3)
            row["mfu"] = None if peak is None else round(work / row["step_s"] / peak, 3)
        if not way:
            row |= {"planned_gb": round(needed / 1e9, 2), "published": None if tiny else PUBLISHED.get(name)}
        yield row


def _peak(machine: Machine) -> float | None:
    return GPUS[machine.name][0] if machine.name in GPUS else None


def card(device: str) -> tuple[str, Machine]:
    """The device's name, and it as ``minivl plan`` knows it."""
    if device == "cpu":
        return "cpu", find_machine("cpu")
    name = torch.cuda.get_device_name()
    known = next((known for known in GPUS if known in name.upper().replace(" ", "")), None)
    machine = find_machine(known or "cuda")
    return name, replace(machine, memory=float(torch.cuda.get_device_properties(0).total_memory))


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="nano's shape and few samples, to try the path")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--output", type=Path, help="file for the rows")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("this needs a CUDA device, and torch finds none; --tiny --device cpu tries the path without one")
    if given.device == "cpu" and not given.tiny:
        parser.error("the full shapes need a CUDA device; add --tiny")
    device, machine = card(given.device)
    rows = []
    for setting in settings(given.device, given.tiny):
        with tempfile.TemporaryDirectory() as folder:
            for row in run_setting(setting, Path(folder), machine, given.tiny):
                rows.append({"device": device} | row)
                print(json.dumps(rows[-1]), flush=True)
    if given.output:
        given.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
