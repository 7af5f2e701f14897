"""Tensors into a GGUF file, in the type that each may have there; one is held in memory at a time.

Rows of matrices are quantised in blocks of 32 values (Q8_0: a scale and 32 bytes; Q4_0: a scale and 32 half bytes).
Vectors, scales and tables of positions stay float32, since llama.cpp adds and multiplies by no other type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import gguf

INSTALL = 'a GGUF file needs the gguf package: pip install "mini-internvl[gguf]"'
TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
"""What a file may be written in: our name -> llama.cpp's."""
FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "Q8_0": "MOSTLY_Q8_0",
    "Q4_0": "MOSTLY_Q4_0",
}
TABLES = ("token_embd.weight", "output.weight")
"""In a Q4_0 file these are Q8_0: every token goes through both."""
Pair = tuple[str, Tensor]


def library() -> Any:
    """The gguf package; ValueError with the line that installs it."""
    try:
        import gguf
    except ImportError:
        raise ValueError(INSTALL) from None
    return gguf


def stored_type(name: str, shape: tuple[int, ...], wanted: str) -> str:
    """The type of one tensor in a file of type ``wanted``, by llama.cpp's names."""
    if len(shape) == 1 or "position_embd" in name:
        return "F32"
    if len(shape) > 2:  # the kernel that cuts patches
        return "F32" if wanted in ("F32", "BF16") else "F16"
    if wanted in ("Q8_0", "Q4_0"):
        if shape[-1] % 32:
            return "F16"
        return "Q8_0" if name in TABLES else wanted
    return wanted


def write_tensors(
    writer: gguf.GGUFWriter,
    pairs: Callable[[bool], Iterable[Pair]],
    wanted: str,
    progress: Callable[[int], None] = lambda size: None,
) -> dict[str, int]:
    """Write head and tensors of a file, and close it; how many tensors are stored in which type.

    Args:
        writer: with all its keys, and nothing written.
        pairs: gives names and tensors, with True of the same shapes but empty; called twice.
        progress: called with the bytes of each tensor when it is written.

    ValueError when a value is no finite number, or too large for float16.
    """
    package = library()
    counts: dict[str, int] = {}
    for name, empty in pairs(True):
        kind = stored_type(name, tuple(empty.shape), wanted)
        counts[kind] = counts.get(kind, 0) + 1
        number = package.GGMLQuantizationType[kind]
        block, size = package.GGML_QUANT_SIZES[number]
        length = empty.numel() // block * size
        writer.add_tensor_info(name, tuple(empty.shape), np.dtype(np.float32), length, raw_dtype=number)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in pairs(False):
            stored = _stored(name, tensor, wanted)
            writer.write_tensor_data(stored)
            progress(stored.nbytes)
    finally:
        writer.close()
    return counts


def _stored(name: str, tensor: Tensor, wanted: str) -> np.ndarray[Any, Any]:
    """A tensor as the file holds it."""
    package = library()
    kind = stored_type(name, tuple(tensor.shape), wanted)
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds values that are infinite or no number; take a checkpoint from before")
    with np.errstate(over="ignore"):
        stored = package.quantize(values, package.GGMLQuantizationType[kind])
    if kind == "F16" and np.isinf(stored).any():
        raise ValueError(f"{name} holds values beyond the 65504 of float16; take the type bf16 or f32")
    return np.asarray(stored)
