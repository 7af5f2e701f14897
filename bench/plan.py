"""Peak memory of training steps as ``minivl plan`` predicts it, beside what a process of its own takes for them.

Run ``python bench/plan.py [CASE ...] [--json]``. Each case is measured in a fresh process that makes the model with
random weights and then two optimiser steps on made samples; its figure is the highest resident memory of the steps
above what the process had after its imports. The prediction is made before, on shapes alone, and leaves that process
share out. The 1B's widths are those of the release; the full run keeps 6 of the 24 layers of encoder and decoder, so
that a small machine holds it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Case:
    """A model, what trains of it, and the samples of a micro batch."""

    model: str
    precision: str
    layers: int | None = None  # of encoder and decoder each; all when None
    lora: bool = False
    weights: str = "fp32"
    train: tuple[str, ...] = ("vision", "projector", "llm")
    rows: int = 1
    tiles: int = 1
    text: int = 128
    micro_batches: int = 1


CASES = {
    "nano full fp32": Case("nano", "fp32", rows=16, tiles=4, micro_batches=2),
    "nano full bf16": Case("nano", "bf16", rows=4, tiles=4, micro_batches=2),
    "1B LoRA bf16": Case("1B", "bf16", lora=True, train=("vision", "llm")),
    "1B LoRA fp32": Case("1B", "fp32", lora=True, train=("vision", "llm")),
    "1B full fp32, 6 layers": Case("1B", "fp32", layers=6, tiles=2),
}


def build(case: Case, device: str):
    """Recipe, stage, learner on a device (or meta) and one micro batch of a case."""
    import torch

    from mini_internvl import recipes
    from mini_internvl.model.checkpoint import read_config
    from mini_internvl.model.config import VLMConfig
    from mini_internvl.model.lora import LORA_INFIX, add_lora
    from mini_internvl.model.sizes import official_config, shapes_only
    from mini_internvl.model.vlm import InternVL
    from mini_internvl.records import Size
    from mini_internvl.train.batches import micro_batches
    from mini_internvl.train.learner import Learner
    from mini_internvl.train.parts import set_trainable
    from mini_internvl.train.workload import made_example

    config = (
        read_config(ROOT / "mini_internvl" / "nano")
        if case.model == "nano"
        else VLMConfig.from_official(official_config(case.model))
    )
    if case.layers:
        vision, llm = replace(config.vision, layers=case.layers), replace(config.llm, layers=case.layers)
        config = replace(config, vision=vision, llm=llm)
    stage = recipes.StageRecipe(
        name=case.model,
        steps=2,
        data=(recipes.SourceRecipe(kind="synth", name="shapes"),),
        train=case.train,
        batch_size=case.rows * case.micro_batches,
        micro_batch=case.rows,
    )
    with shapes_only():
        model = InternVL(config)
        if case.lora:
            add_lora(model, recipes.LoraRecipe())
    half = case.weights == "bf16" or (case.lora and case.precision == "bf16")
    for name, parameter in model.named_parameters():
        if half and LORA_INFIX not in name and not (case.lora and name.startswith("mlp1.")):
            parameter.data = parameter.data.to(torch.bfloat16)
    if device != "meta":
        model.to_empty(device=device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.02)
    model.image_token_id = 7
    set_trainable(model, stage.parts())
    size = Size(tokens=case.text + case.tiles * config.tokens_per_tile, supervised=64, tiles=case.tiles)
    batch = micro_batches([made_example(size, config, 7) for _ in range(case.rows)], case.rows)[0]
    if device != "meta":
        batch = replace(batch, tiles=torch.zeros(batch.tiles.shape, dtype=torch.uint8))
    return stage, Learner(model, stage), batch


def status(name: str) -> int:
    """A figure of this process's memory, in bytes."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def measure(case: Case) -> dict[str, float]:
    """Two steps in this process."""
    import torch

    from mini_internvl.train import workload  # noqa: F401  imported before memory is looked at
    from mini_internvl.train.loop import accumulate
    from mini_internvl.train.optim import make_optimizer

    before = status("VmRSS")
    stage, learner, batch = build(case, "cpu")
    learner.train()
    optimizer = make_optimizer(learner, stage)
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory is that from here on
    began = time.perf_counter()
    for _ in range(2):
        accumulate(learner, [batch] * case.micro_batches, 100.0, torch.device("cpu"), case.precision)
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"bytes": status("VmHWM") - before, "seconds": (time.perf_counter() - began) / 2}


def predict(case: Case) -> dict[str, float]:
    """The plan's figure, without the process."""
    from mini_internvl.train.trace import trace_step

    stage, learner, batch = build(case, "meta")
    accumulates = case.micro_batches > 1
    traced = trace_step(learner, stage, batch, precision=case.precision, device="cpu", accumulates=accumulates)
    return {"bytes": traced.highest + traced.gaps, "gaps": traced.gaps, "moment": traced.peak_moment, **traced.peak}


def main() -> None:
    """Predict and measure each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--do", choices=["measure", "predict"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.do:
        print(json.dumps(globals()[arguments.do](CASES[arguments.cases[0]])))
        return
    rows = {}
    for name in arguments.cases or CASES:
        found = {}
        for what in ("predict", "measure"):
            command = [sys.executable, __file__, name, "--do", what]
            found[what] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        planned, measured = found["predict"]["bytes"] / 1e9, found["measure"]["bytes"] / 1e9
        rows[name] = {
            "predicted GB": round(planned, 2),
            "measured GB": round(measured, 2),
            "ratio": round(planned / measured, 3),
            "seconds a step": round(found["measure"]["seconds"], 1),
        }
        if not arguments.json:
            print(f"{name:24} " + "  ".join(f"{key} {value}" for key, value in rows[name].items()), flush=True)
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
