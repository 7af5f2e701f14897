"""Machines that a run is planned for, or trains on: their memory, and how many operations a second they reach."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from mini_internvl.engine.device import fast_bfloat16, resolve_device

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run is planned for."""

    name: str
    kind: str  # cpu, cuda or mps
    flops: float  # operations a second that are reached
    note: str  # how that is known
    memory: float | None = None  # bytes; ``None`` where unknown
    bf16: bool = True  # whether it computes in bfloat16 natively


UTILISATION = 0.3
"""Share of the peak that is assumed of GPUs; published runs of models of this kind reach 0.16 to 0.45."""
GPUS = {
    "H200": (989e12, 141), "H100": (989e12, 80), "A100": (312e12, 80), "A100-40": (312e12, 40), "L40S": (362e12, 48),
    "A6000": (155e12, 48), "L4": (121e12, 24), "4090": (165e12, 24), "3090": (71e12, 24), "T4": (65e12, 16),
}  # fmt: skip
"""Peak of dense products in 16 bits, operations a second, and memory in GB, by the makers' data sheets."""


def find_machine(name: str) -> Machine:
    """A GPU of the table, or a device of this computer, whose speed is measured; ValueError lists the known ones."""
    if name.upper() in GPUS:
        peak, memory = GPUS[name.upper()]
        note = f"{UTILISATION:.0%} of {peak / 1e12:.0f} TFLOP/s assumed"
        return Machine(
            name=name.upper(), kind="cuda", flops=peak * UTILISATION, note=note, memory=memory * GB,
            bf16=name.upper() != "T4",
        )  # fmt: skip
    try:
        device = resolve_device(name)
    except ValueError as error:
        raise ValueError(f"{error}; or a GPU to plan for: {', '.join(GPUS)}") from None
    speed, total = _measured(device), None
    if device.type == "cuda":
        total = float(torch.cuda.get_device_properties(device).total_memory)
    note = f"{speed / 1e9:,.0f} GFLOP/s measured on products of matrices, {CPU_SHARE:.0%} of it assumed"
    return Machine(
        name=str(device), kind=device.type, flops=speed * CPU_SHARE, note=note, memory=total,
        bf16=fast_bfloat16(device),
    )  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """Of a GPU of the table, in 16 bits; ``None`` of any other device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = [gpu for gpu in GPUS if gpu.split("-")[0] in name.replace("-", " ").split()]
    return GPUS[known[0]][0] if known else None


CPU_SHARE = 0.6  # of the speed of plain products that a whole step reaches


def _measured(device: torch.device) -> float:
    """Operations a second of a product of matrices, in the type that ``auto`` would train in."""
    dtype = torch.bfloat16 if fast_bfloat16(device) else torch.float32
    side = 1024 if device.type == "cpu" else 8192
    x = torch.ones(side, side, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        (x @ x)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
