"""What of a model trains in a stage, how fast, and how much of its encoder is dropped meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mini_internvl.model.lora import adapter_parameters, lora_layers
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import RecipeError, StageRecipe


def learning_rate(stage: StageRecipe, step: int) -> float:
    """Rate of a step (from 0): linear warm-up, then a half cosine to ``min_lr_ratio``."""
    warmup = max(1, round(stage.warmup_ratio * stage.steps))
    if step < warmup:
        return stage.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, stage.steps - warmup)
    floor = stage.min_lr_ratio
    return stage.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def trainable(model: InternVL, parts: Sequence[str]) -> frozenset[str]:
    """Names of the parameters that the named parts (vision, projector, llm) train.

    In a model with adapters, vision and llm mean their adapters, the base stays frozen; the projector trains in full.
    """
    with_adapters = bool(lora_layers(model))
    modules = {"vision": model.vision_model, "projector": model.mlp1, "llm": model.language_model}
    wanted = {
        id(parameter)
        for part in parts
        for parameter in (
            adapter_parameters(modules[part]) if with_adapters and part != "projector" else modules[part].parameters()
        )
    }
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in wanted)


def set_trainable(model: InternVL, parts: Sequence[str]) -> None:
    """Freeze everything but the named parts, as :func:`trainable` means them; RecipeError if nothing would train."""
    names = trainable(model, parts)
    if not names:
        raise RecipeError(f"train names {', '.join(parts)}, where this model has no adapters; nothing would train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def set_drop_path(model: InternVL, rate: float) -> None:
    """Set stochastic depth: 0 in the first block, growing linearly to ``rate`` in the last."""
    layers = model.vision_model.encoder.layers
    for block, value in zip(layers, torch.linspace(0, rate, len(layers)).tolist(), strict=True):
        block.drop_path = value
