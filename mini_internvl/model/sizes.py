"""The released sizes as official config.json dictionaries, and fresh models made from a configuration.

Numbers: config files of InternVL2, 2.5, 3 and 3.5 up to 4B; parameter counts are checked against the published ones in
the tests. Sizes are of configurations: a checkpoint is read from its own config.json, whatever it is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mini_internvl.model import llms
from mini_internvl.model.config import VisionConfig, VLMConfig
from mini_internvl.model.flash import CrossAttentionPooling
from mini_internvl.model.vision import Embeddings, InternViT
from mini_internvl.model.vlm import InternVL

VIT_300M: dict[str, Any] = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-06,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "qk_normalization": False,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "drop_path_rate": 0.0,
    "attention_dropout": 0.0,
}

LATER_TEMPLATE = "internvl2_5"  # chat template of every generation after InternVL2
VIT_6B: dict[str, Any] = VIT_300M | {
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "norm_type": "rms_norm",
    "qkv_bias": False,
    "qk_normalization": True,
    "initializer_factor": 0.1,
    "initializer_range": 1e-10,
}
"""InternViT-6B-448px-V1-5, the teacher of the 300M."""
FLASH = "-Flash"
ROUTED = {"flash_mode": True, "flash_relative_threshold": 0.5, "flash_absolute_threshold": 0.5}
"""Of every size of 3.5 as a Flash model. The thresholds are made up here: the released ones come with config.json."""
ENCODERS: dict[str, dict[str, Any]] = {"300M": VIT_300M, "6B": VIT_6B}


def compose(
    vision: Mapping[str, Any], llm: Mapping[str, Any], *, image_size: int, max_tiles: int, **extra: Any
) -> dict[str, Any]:
    """An official config.json dictionary from its two halves; the template follows from the language model."""
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": image_size,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": max_tiles,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": llms.find(llm["architectures"][0]).TEMPLATE,
        "use_thumbnail": True,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "torch_dtype": "bfloat16",
        **extra,
        "llm_config": dict(llm),
        "vision_config": dict(vision),
    }


def official_config(size: str) -> dict[str, Any]:
    """config.json of a released size; ValueError lists the known ones."""
    if size not in size_names():
        raise ValueError(f'unknown size "{size}"; known: {", ".join(size_names())}')
    routed, size = size.endswith(FLASH), size.removesuffix(FLASH)
    backbone = next(backbone for backbone in llms.backbones().values() if size in backbone.SIZES)
    llm = {"architectures": [backbone.ARCHITECTURE], **backbone.SIZES[size]}
    llm |= {"hidden_act": "silu", "tie_word_embeddings": False}
    more: dict[str, Any] = {"template": LATER_TEMPLATE} if "-" in size else {}
    if backbone.IMAGE_TOKEN:
        more["img_context_token_id"] = backbone.IMAGE_TOKEN
    return compose(VIT_300M, llm, image_size=448, max_tiles=12, **more, **(ROUTED if routed else {}))


def size_names() -> list[str]:
    """Names of the released sizes: "1B", "2B", "4B" of InternVL2, then "2.5-1B" and so on, Flash models last."""
    names = [name for backbone in llms.backbones().values() for name in backbone.SIZES]
    names.sort(key=lambda name: (float(name.rpartition("-")[0] or 2), name))
    return names + [name + FLASH for name in names if name.startswith("3.5-")]


def size_of_release(name: str) -> str:
    """Size of a released model by its hub id, "3.5-1B" of "OpenGVLab/InternVL3_5-1B-MPO"; "" for any other name."""
    stages = "(?:-(?:Pretrained|Instruct|MPO))?(?:-(?:HF|hf))?"
    found = re.search(rf"(?:^|/)InternVL(2|2_5|3|3_5)-(\dB)(?:{stages}|({FLASH}))$", name)
    size = f"{found[1].replace('_', '.')}-{found[2]}{found[3] or ''}".removeprefix("2-") if found else ""
    return size if size in size_names() else ""


class _NoDraws(TorchFunctionMode):
    """Leaves out what fills the tensors of module constructors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.normal_ or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made inside have names and shapes but no memory.

    Torch's own meta device alone would still draw their first values, which loads a second's worth of its modules.
    """
    with torch.device("meta"), _NoDraws():
        yield


def count_parameters(config: VLMConfig) -> dict[str, int]:
    """Parameters of each part, counted on shapes alone: ``vision``, ``projector``, ``llm``, a Flash model's
    ``router``, and ``total``."""
    with shapes_only():
        model = InternVL(config)
    parts: dict[str, list[nn.Module]] = {
        "vision": [model.vision_model],
        "projector": [model.mlp1],
        "llm": [model.language_model],
    }
    if config.flash:
        parts["projector"].append(model.mlp2)
        parts["router"] = [model.pooling_before_gating, model.gating]
    counts = {name: sum(p.numel() for m in part for p in m.parameters()) for name, part in parts.items()}
    return {**counts, "total": sum(counts.values())}


def fresh(config: VLMConfig, seed: int) -> InternVL:
    """A newly initialised model: normal weights of the configs' ranges, zero biases, norms at one."""
    model = InternVL(config)
    vision, llm = config.vision.initializer_range, config.llm.initializer_range
    draw(model, seed, lambda name: vision if name.startswith("vision_model") else llm)
    return model


def fresh_encoder(config: VisionConfig, seed: int) -> InternViT:
    """A newly initialised encoder, drawn as :func:`fresh` draws."""
    model = InternViT(config)
    draw(model, seed, lambda name: config.initializer_range)
    return model


def draw(model: nn.Module, seed: int, range_of: Callable[[str], float]) -> None:
    """Initialise all modules of ``model``; ``range_of`` gives the standard deviation for a module's name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            std = range_of(name)
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
                module.weight.normal_(0.0, std, generator=generator)
                if (bias := getattr(module, "bias", None)) is not None:
                    bias.zero_()
            elif isinstance(module, nn.MultiheadAttention):
                module.in_proj_weight.normal_(0.0, std, generator=generator)
                module.in_proj_bias.zero_()
            elif isinstance(module, CrossAttentionPooling):
                module.query_token.normal_(0.0, 1.0, generator=generator)
            elif isinstance(module, Embeddings):  # as the original, so that positions differ from the start
                for table in (module.class_embedding, module.position_embedding):
                    table.normal_(0.0, 1.0, generator=generator)
