"""Frozen weights in 4 bits beside adapters that train, by ``bitsandbytes``: the base of QLoRA.

A weight becomes one of 16 levels of a normal distribution, scaled by the largest weight of its block of 64, and these
scales are held in 8 bits: 0.52 bytes a weight. Products are made of the weights as they are read back, in the type of
the input. Source: QLoRA (arXiv 2305.14314), section 3.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mini_internvl.model.lora import LoraLinear, lora_layers

INSTALL = 'adamw8bit and lora.quantize need bitsandbytes: pip install "mini-internvl[lowbit]"'
BLOCK = 64  # weights that share a scale


def bitsandbytes() -> Any:
    """The package; ValueError where it is not installed."""
    try:
        import bitsandbytes as package
    except ImportError:
        raise ValueError(INSTALL) from None
    return package


def installed() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec("bitsandbytes") is not None


class Nf4LoraLinear(LoraLinear):
    """A layer with an adapter whose ``weight`` is a uint8 buffer of two weights a byte, which no file keeps."""

    def __init__(self, layer: LoraLinear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.scale, self.dropout = layer.scale, layer.dropout
        self.bias, self.lora_A, self.lora_B = layer.bias, layer.lora_A, layer.lora_B
        quantize = bitsandbytes().functional.quantize_4bit
        kind = {"blocksize": BLOCK, "compress_statistics": True, "quant_type": "nf4"}
        packed, self.levels = quantize(layer.weight.detach(), **kind)
        self.register_buffer("weight", packed, persistent=False)

    def base(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        product: Tensor = bitsandbytes().matmul_4bit(x, self.weight.t(), quant_state=self.levels)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def base_weight(self) -> Tensor:
        """(out, in) in the type that it had, as the 4 bits give it."""
        weight: Tensor = bitsandbytes().functional.dequantize_4bit(self.weight, self.levels)
        return weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.levels.to(self.weight.device)
        return self


def quantize_base(model: nn.Module) -> None:
    """Hold every layer that has an adapter in 4 bits, in place, one after the other."""
    for name, layer in lora_layers(model).items():
        packed = Nf4LoraLinear(layer)
        packed.train(layer.training)
        model.set_submodule(name, packed)
