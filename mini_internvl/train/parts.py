"""What of a model trains in a stage, how fast, and how much of its encoder is dropped meanwhile."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mini_internvl.model.attention import attend
from mini_internvl.model.lora import adapter_parameters, lora_layers
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import BLOCKS, FLASH_PARTS, PartRecipe, RecipeError, StageRecipe


def learning_rate(stage: StageRecipe, step: int) -> float:
    """Rate of a step (from 0): linear warm-up, then a half cosine to ``min_lr_ratio``."""
    warmup = max(1, round(stage.warmup_ratio * stage.steps))
    if step < warmup:
        return stage.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, stage.steps - warmup)
    floor = stage.min_lr_ratio
    return stage.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def part_modules(model: InternVL) -> dict[str, nn.Module]:
    """The parts of a model by their names in recipes."""
    parts: dict[str, nn.Module] = {
        "vision": model.vision_model,
        "projector": model.mlp1,
        "llm": model.language_model,
    }
    if model.config.flash:
        router = nn.ModuleList([model.pooling_before_gating, model.gating])
        parts |= dict(zip(FLASH_PARTS, (model.mlp2, router), strict=True))
    return parts


Parts = Mapping[str, PartRecipe] | Sequence[str]
"""Names (vision, projector, llm, short_projector, router) of what trains, with how it does if that is told."""


def trainable(model: InternVL, parts: Parts) -> frozenset[str]:
    """Names of the parameters that train where ``parts`` do.

    In a model with adapters, vision and llm mean their adapters and the base stays frozen, unless their recipe says
    ``lora: false``; the projector trains in full. RecipeError where a part, its adapters or blocks are not there.
    """
    wanted: set[int] = set()
    if lacking := [name for name in parts if name not in part_modules(model)]:
        raise RecipeError(f"train names {', '.join(lacking)}, which this model has not; give it one: router: {{}}")
    for name in parts:
        part = parts[name] if isinstance(parts, Mapping) else PartRecipe()
        modules = _trained_modules(model, name, part.layers)
        whole = (parameter for module in modules for parameter in module.parameters())
        adapters = (parameter for module in modules for parameter in adapter_parameters(module))
        has_adapters = any(map(lora_layers, part_modules(model).values() if part.lora is None else modules))
        if part.lora and not has_adapters:
            raise RecipeError(f"train.{name}.lora is true, where this model has no adapters; name it in lora.parts")
        if part.lora is False and has_adapters:
            raise RecipeError(f"train.{name}.lora is false, but it has adapters; leave {name} out of lora.parts")
        wanted |= {id(parameter) for parameter in (adapters if has_adapters and name in BLOCKS else whole)}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in wanted)


def _trained_modules(model: InternVL, name: str, layers: int | None) -> list[nn.Module]:
    """The part, or its last blocks with what comes after them."""
    if layers is None:
        return [part_modules(model)[name]]
    llm = model.language_model
    blocks = model.vision_model.blocks(model.config.select_layer) if name == "vision" else llm.layers
    if layers > len(blocks):
        raise RecipeError(f"train.{name}.layers is {layers}; it has {len(blocks)} blocks")
    return [*blocks[-layers:], *([] if name == "vision" else [llm.norm, llm.lm_head])]


def set_trainable(model: InternVL, parts: Parts) -> None:
    """Freeze everything but the named parts, as :func:`trainable` means them; RecipeError if none would train."""
    names = trainable(model, parts)
    if parts and not names:
        raise RecipeError(f"train names {', '.join(parts)}, where this model has no adapters; nothing would train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def rate_scale(name: str, stage: StageRecipe) -> float:
    """The peak learning rate of a learner's (or model's) parameter over that of the stage."""
    prefixes: dict[str, tuple[str, ...]] = {
        "vision": ("vision_model.",),
        "projector": ("mlp1.",),
        "llm": ("language_model.",),
        "short_projector": ("mlp2.",),
        "router": ("pooling_before_gating.", "gating."),
    }
    for part, settings in stage.parts().items():
        if settings.lr is not None and name.removeprefix("model.").startswith(prefixes[part]):
            return settings.lr / stage.lr
    return 1.0


def set_checkpointing(model: InternVL, parts: Collection[str]) -> None:
    """Let the blocks of these parts keep their inputs alone for the backward pass, and those of the others all."""
    stacks: dict[str, Any] = {"vision": model.vision_model.encoder.layers, "llm": model.language_model.layers}
    for name, blocks in stacks.items():
        for block in blocks:
            block.checkpointing = name in parts


def set_compiled(model: InternVL) -> None:
    """Compile the blocks, in place, for tensors of any length.

    Outside stay drop path, whose random numbers must not change, and the decoder's attention, whose kernels are chosen
    by the documents of a row.
    """
    outside = torch.compiler.disable(attend)
    decoder: Any = model.language_model
    encoder: Any = model.vision_model.encoder
    for block in decoder.layers:
        block.self_attn.attend = outside
        block.compile(dynamic=True)
    for block in encoder.layers:
        block.attn.compile(dynamic=True)
        block.mlp.compile(dynamic=True)


def set_drop_path(model: InternVL, rate: float) -> None:
    """Set stochastic depth: 0 in the first block, growing linearly to ``rate`` in the last."""
    layers = model.vision_model.encoder.layers
    for block, value in zip(layers, torch.linspace(0, rate, len(layers)).tolist(), strict=True):
        block.drop_path = value
