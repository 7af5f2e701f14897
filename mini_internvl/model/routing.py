"""A second projector and a router for a model that has none: it becomes a Flash model, for training to begin with.

The second projector begins near the first: it gives each of its few tokens the mean of what the first gives the tokens
in its place, but for two things. The first projector's non-linearity sees means over halves of these tokens, and the
layer norm runs over all of them together.

Unusual: the layer that the second projector has beyond the first begins as the identity, exactly, for
GELU(x) - GELU(-x) = x: half of its units hold x, the other half -x. The router begins at random.
How the released models began is not published (arXiv 2508.18265, 2510.12793).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mini_internvl.model import flash
from mini_internvl.model.config import ConfigError, FlashConfig, VLMConfig
from mini_internvl.model.sizes import draw
from mini_internvl.model.vlm import InternVL, pixel_unshuffle


def routed_config(config: VLMConfig, thresholds: FlashConfig) -> VLMConfig:
    """The same model with a router; ConfigError where its sizes allow none."""
    if config.vision.hidden_size % flash.HEADS:
        raise ConfigError(f"a router has {flash.HEADS} heads, which {config.vision.hidden_size} channels do not divide")
    if config.downsample_ratio == 1:
        raise ConfigError(
            "downsample_ratio is 1: the first projector joins no patches, so a second one cannot join more"
        )
    official = {
        **config.official,
        "flash_mode": True,
        "flash_relative_threshold": thresholds.relative,
        "flash_absolute_threshold": thresholds.absolute,
    }
    return replace(config, flash=thresholds, official=official)


def add_router(model: InternVL, thresholds: FlashConfig, seed: int) -> None:
    """Make a model a Flash model, in place; one that has a router already keeps it and gets the thresholds.

    ConfigError as of :func:`routed_config`.
    """
    has_one = model.config.flash is not None
    model.config = routed_config(model.config, thresholds)
    if has_one:
        return
    width, std = model.config.vision.hidden_size, model.config.llm.initializer_range
    model.mlp2 = flash.short_projector(model.config)
    model.pooling_before_gating, model.gating = flash.CrossAttentionPooling(width), flash.Gating(width)
    parts: tuple[torch.nn.Module, ...] = (model.mlp2, model.pooling_before_gating, model.gating)
    for part in parts[1:]:
        draw(part, seed, lambda name: std)
    if model.device.type != "meta":
        begin_near(model)
    for part in parts:
        part.to(device=model.device, dtype=model.dtype).train(model.training)


@torch.no_grad()
def begin_near(model: InternVL) -> None:
    """Set the second projector so that it gives about the means of what the first gives."""
    token, channel = shared_channels(model.config)
    group, hidden = int(token.max()) + 1, model.config.llm.hidden_size
    copied = copy.deepcopy(model.mlp1).cpu().float()
    norm, first, _, last = list[Any](copied)
    wide_norm, wide_first, _, _, middle, _, _, wide_last = list[Any](model.mlp2)
    wide_norm.weight.copy_(norm.weight[channel])
    wide_norm.bias.copy_(norm.bias[channel])
    half = (token * 2 >= group).long()
    share = torch.tensor([group - group // 2, group // 2]) / group  # of the tokens in each half
    for number in (0, 1):
        own = (half == number) / (share[number] * group)
        rows = slice(number * hidden, (number + 1) * hidden)
        wide_first.weight[rows] = first.weight[:, channel] * own
        wide_first.bias[rows] = first.bias
    mean = torch.cat([torch.eye(hidden) * part for part in share], 1)
    middle.weight.copy_(torch.cat([mean, -mean]))
    middle.bias.zero_()
    wide_last.weight.copy_(torch.cat([last.weight, -last.weight], 1))
    wide_last.bias.copy_(last.bias)


def shared_channels(config: VLMConfig) -> tuple[Tensor, Tensor]:
    """Of each input channel of the second projector: the token of the first, among those in one place, and its channel
    there."""
    width, ratio, version = config.vision.hidden_size, config.downsample_ratio, config.ps_version
    side = round(1 / ratio**2)
    numbers = torch.arange(side * side * width, dtype=torch.float64).view(1, side, side, width)
    few = pixel_unshuffle(numbers, ratio**2, version).flatten().long()
    tokens = pixel_unshuffle(numbers, ratio, version).flatten(1, 2)[0].long()
    place = torch.empty_like(few)
    place[tokens.flatten()] = torch.arange(tokens.numel())
    found = place[few]
    return found // tokens.shape[1], found % tokens.shape[1]
