"""Where a model runs and in which type: what the words auto, cpu, cuda, cuda:1 and mps mean on this computer."""

from __future__ import annotations

import re
from pathlib import Path

import torch

INT8 = "int8"
"""The name, among those of types, of int8 weights for the decoder; see ``model/int8.py``."""
SMALL_MODEL_BYTES = 200e6  # weights up to this size stay float32 on a CPU


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device that a name means; "auto" takes the first GPU where there is one, else the CPU.

    ValueError when the name is unknown, or this computer has no such device.
    """
    text = str(name)
    if text == "auto":
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise ValueError(f'device is "{text}"; known: auto, cpu, mps, cuda, cuda:1')
    device = torch.device(text)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError('device is "mps", which this computer or this build of torch lacks; use auto or cpu')
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f'device is "{text}", but torch sees {gpus} CUDA devices; use auto or cpu')
    return device


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; emulated, a training step takes many times as long."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(able is True for name, able in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
    return device.type == "mps"


def resolve_dtype(name: str, device: torch.device, folder: Path) -> str:
    """The type for answering: "auto" is bfloat16 where it is fast, but float32 for a small model on a CPU."""
    if name != "auto":
        return name
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    small = device.type == "cpu" and size <= SMALL_MODEL_BYTES
    return "bfloat16" if fast_bfloat16(device) and not small else "float32"
