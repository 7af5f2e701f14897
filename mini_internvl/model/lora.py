"""Low-rank adapters: W x + scale * B A x, with W frozen and only A and B learning.

:class:`LoraLinear` is a Linear that keeps ``weight`` and ``bias`` where they were and adds ``lora_A`` and ``lora_B``
beside them: the base tensors keep their names in the state dict, and folding the product in leaves a plain Linear.
Source: LoRA (arXiv 2106.09685); which layers, alpha and dropout: ``modeling_internvl_chat.py``, ``wrap_llm_lora``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import LoraRecipe as LoraConfig

LORA_INFIX = ".lora_"  # part of every adapter tensor's name and of no other's


class LoraLinear(nn.Linear):
    """A frozen Linear with an adapter; weight and bias are those of ``base``, shared and not copied.

    ``scale`` is alpha / rank, ``dropout`` acts on the adapter's input while training.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scale, self.dropout = scale, dropout
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out); A and B are float32 whatever the base is."""
        y = self.base(x)
        low = F.dropout(x, self.dropout, self.training).to(self.lora_A.dtype)
        return y + (self.scale * F.linear(F.linear(low, self.lora_A), self.lora_B)).to(y.dtype)

    def base(self, x: Tensor) -> Tensor:
        """What the layer gives without its adapter."""
        return F.linear(x, self.weight, self.bias)

    def base_weight(self) -> Tensor:
        """(out, in)."""
        return self.weight.detach()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale}"

    def delta(self) -> Tensor:
        """(out, in) float32: what the adapter adds to the weight."""
        return self.scale * (self.lora_B.detach().float() @ self.lora_A.detach().float())


def lora_layers(module: nn.Module) -> dict[str, LoraLinear]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLinear)}


def adapter_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    for layer in lora_layers(module).values():
        yield from (layer.lora_A, layer.lora_B)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors, and no others, under the names of the state dict."""
    return {name: value for name, value in model.state_dict().items() if LORA_INFIX in name}


def targeted(model: InternVL, config: LoraConfig) -> list[str]:
    """Names of the Linear layers that a config means; ValueError where a target names no layer of its part."""
    names: list[str] = []
    for part in config.parts:
        prefix, root = ("language_model", "layers.") if part == "llm" else ("vision_model", "encoder.layers.")
        linear = [n for n, m in model.get_submodule(prefix).named_modules() if isinstance(m, nn.Linear)]
        for target in getattr(config.targets, part):
            found = [n for n in linear if n.startswith(root) and n.endswith(f".{target}")]
            if not found:
                raise ValueError(f'lora.targets.{part}: no layer of this model is called "{target}"')
            names += [f"{prefix}.{n}" for n in found]
    return sorted(set(names))


def wrap(model: nn.Module, name: str, rank: int, scale: float, dropout: float = 0.0) -> LoraLinear:
    """Put a LoraLinear, A and B zero, in the place of a Linear."""
    base = model.get_submodule(name)
    assert type(base) is nn.Linear, f"{name} is no plain Linear"
    layer = LoraLinear(base, rank, scale, dropout)
    layer.train(base.training)
    base.requires_grad_(False)
    model.set_submodule(name, layer)
    return layer


def add_lora(model: InternVL, config: LoraConfig, seed: int = 0) -> InternVL:
    """Freeze a plain model and put float32 adapters on its layers, in place; its outputs stay what they were.

    A is uniform as in a fresh Linear, by the seed, and B zero. ValueError where the model has adapters already, or a
    target names no layer.
    """
    if lora_layers(model):
        raise ValueError("the model has adapters already; merge them first")
    names, generator = targeted(model, config), torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name in names:
        layer = wrap(model, name, config.rank, config.scale, config.dropout)
        first = nn.init.kaiming_uniform_(torch.empty(layer.lora_A.shape), a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            layer.lora_A.copy_(first)
    return model


def set_dropout(model: nn.Module, rate: float) -> None:
    for layer in lora_layers(model).values():
        layer.dropout = rate


def merge_lora(model: InternVL) -> InternVL:
    """Fold every adapter into its weight, in place: a plain model again, all of which can train.

    Sums are made in float32 and rounded once to the weight's type.
    """
    for name, layer in lora_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter((layer.base_weight().float() + layer.delta()).to(layer.base_weight().dtype))
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.detach())
        plain.train(layer.training)
        model.set_submodule(name, plain)
    model.requires_grad_(True)
    return model
