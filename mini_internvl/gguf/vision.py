"""Encoder and projector of a GGUF file (mmproj), as llama.cpp's ``clip.cpp`` reads them for InternVL.

Unusual: llama.cpp puts the class token behind the patches, not in front, and adds the table of positions row by row.
The table is therefore written with its first row, the class token's, at the end. Its GELU is the tanh form, the
model's the exact one; features differ by about a thousandth of their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mini_internvl.gguf.tensors import Pair, library
from mini_internvl.inputs.tiles import MEAN, STD
from mini_internvl.model.config import ConfigError, VLMConfig
from mini_internvl.model.vision import resized_positions

if TYPE_CHECKING:
    import gguf

PREFIX, PROJECTOR = "vision_model.", "mlp1."
_EMBEDDINGS = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.position_embedding": "v.position_embd.weight",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.patch_embedding.bias": "v.patch_embd.bias",
}
_BLOCK = {
    "attn.proj": "attn_out",
    "norm1": "ln1",
    "norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "ls1": "ls1.weight",
    "ls2": "ls2.weight",
}
"""A block's modules by our names -> theirs; the fused ``attn.qkv`` is cut into three beside this table."""


def check(config: VLMConfig) -> None:
    """ConfigError for an encoder or projector that llama.cpp cannot compute."""
    vision, merge = config.vision, 1 / config.downsample_ratio
    wrong = {
        "a router of visual tokens (Flash); it would give every tile all tokens": config.flash is not None,
        "several tiles without a thumbnail (use_thumbnail)": config.max_tiles > 1 and not config.use_thumbnail,
        'ps_version "v1"': config.ps_version != "v2",
        "RMSNorm in the encoder": vision.norm_type != "layer_norm",
        "queries and keys of the encoder normalised": vision.qk_norm,
        f"downsample_ratio {config.downsample_ratio}": merge != int(merge),
        f"select_layer {config.select_layer}, before the first block": not depth(config),
    }
    if found := [what for what, present in wrong.items() if present]:
        raise ConfigError(f"llama.cpp does not compute {' and '.join(found)}")


def depth(config: VLMConfig) -> int:
    """Blocks that run for ``select_layer``; llama.cpp always takes the last, so the others are left out."""
    return config.select_layer % (config.vision.layers + 1)


def add_keys(writer: gguf.GGUFWriter, config: VLMConfig) -> None:
    """Sizes, normalisation of pixels and tile limits."""
    vision, package = config.vision, library()
    writer.add_type(package.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(package.VisionProjectorType.INTERNVL)
    writer.add_vision_projection_dim(config.llm.hidden_size)
    writer.add_vision_image_size(config.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(depth(config))
    writer.add_vision_head_count(vision.heads)
    writer.add_vision_attention_layernorm_eps(vision.norm_eps)
    writer.add_vision_use_gelu(True)
    writer.add_vision_projector_scale_factor(round(1 / config.downsample_ratio))
    writer.add_vision_image_mean(list(MEAN))
    writer.add_vision_image_std(list(STD))
    writer.add_vision_preproc_min_tiles(config.min_tiles)
    writer.add_vision_preproc_max_tiles(config.max_tiles)


def tensors(state: Mapping[str, Tensor], config: VLMConfig) -> Iterator[Pair]:
    """Encoder and projector under llama.cpp's names, from the tensors under ours."""
    for key, value in state.items():
        if key.startswith(PROJECTOR):
            yield f"mm.model.mlp.{key.removeprefix(PROJECTOR)}", value
        elif key.startswith(PREFIX):
            yield from _encoder(key.removeprefix(PREFIX), value, config)


def _encoder(key: str, value: Tensor, config: VLMConfig) -> Iterator[Pair]:
    if key in _EMBEDDINGS:
        if key.endswith("class_embedding"):
            value = value.reshape(-1)
        elif key.endswith("position_embedding"):
            value = _positions(value, config)
        yield _EMBEDDINGS[key], value
        return
    number, _, inner = key.removeprefix("encoder.layers.").partition(".")
    if int(number) >= depth(config):
        return
    module, _, kind = inner.rpartition(".") if inner not in _BLOCK else (inner, "", "")
    if module == "attn.qkv":
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            yield f"v.blk.{number}.attn_{letter}.{kind}", part
    else:
        yield f"v.blk.{number}.{_BLOCK[module]}{'.' * bool(kind)}{kind}", value


def _positions(table: Tensor, config: VLMConfig) -> Tensor:
    """(1, 1 + patches, hidden) -> (patches + 1, hidden) for the model's own tiles, the class token's row last."""
    side = config.image_size // config.vision.patch_size
    if table.shape[1] != side * side + 1:
        size = (side * side + 1, table.shape[2])
        table = torch.empty(1, *size, device="meta") if table.is_meta else resized_positions(table, side, side)
    return torch.cat([table[0, 1:], table[0, :1]])
