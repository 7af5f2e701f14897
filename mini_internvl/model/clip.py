"""A CLIP vision encoder as the start of an InternViT, such as CLIP ViT-L/14-336 for the 300M (paper section 3.1).

How the authors turned one into the other is not published. What is done here:

* Exact: blocks with their biases, queries, keys and values joined, residual scales of one, the eps of the norms. The
  patch convolution takes pixels normalised for InternViT: the change from CLIP's mean and deviation goes into its
  weights and into its bias, which CLIP has not.
* The position table is resized to the grid of the larger tile (bicubic), as InternViT resizes its own.
* CLIP's norm before the first block has no place in InternViT. ``"fold"`` puts it into convolution, positions and class
  token: its shift, its scale and the removal of the mean exactly, the division by each token's deviation by one
  constant for all patches, measured on generated pictures; for the class token, which is a constant, it is exact.
  ``"omit"`` leaves it out.
* CLIP's quick GELU, x * sigmoid(1.702 x), is replaced by the exact GELU, which InternViT computes.
* Left out: the norm behind the last block, which CLIP applies to the class token alone, and the projection.

``bench/clip.py`` measures what each of these changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_internvl.model.config import VisionConfig
from mini_internvl.model.fields import ConfigError, Fields
from mini_internvl.model.sizes import VIT_300M

PreNorm = Literal["fold", "omit"]
IMAGE_SIZE = 448
MODEL_TYPES = ("clip", "clip_vision_model")
DEFAULTS = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"image_size": 224, "patch_size": 32, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
}
"""Of transformers' ``CLIPVisionConfig``: a config.json may leave these out."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels that InternViT takes (``inputs/tiles.py``)."""
PICTURES, SEED = 8, 0  # generated pictures on which the deviation of tokens is measured
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_PARTS = {
    **{"self_attn.out_proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"},
    **{"layer_norm1": "norm1", "layer_norm2": "norm2"},
}
_JOINED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_BEFORE = ("embeddings.class_embedding", "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight",
           "pre_layrnorm.weight", "pre_layrnorm.bias")  # fmt: skip


def is_clip(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of transformers' ``CLIPModel`` or ``CLIPVisionModel``."""
    return raw.get("model_type") in MODEL_TYPES


def internvit_config(raw: Mapping[str, Any], *, image_size: int = IMAGE_SIZE) -> dict[str, Any]:
    """The official fields of the InternViT; ConfigError where a field is wrong or patches do not fill the tile."""
    fields = {**DEFAULTS, **_vision(raw)}
    if fields["hidden_act"] not in ("quick_gelu", "gelu"):
        raise ConfigError(f'hidden_act of the CLIP encoder is "{fields["hidden_act"]}"; known: quick_gelu, gelu')
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    config = VIT_300M | {name: fields[name] for name in (*names, "layer_norm_eps")} | {"image_size": image_size}
    VisionConfig.from_official(config)
    return config


def internvit_tensors(
    raw: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    image_size: int = IMAGE_SIZE,
    pre_norm: PreNorm = "fold",
) -> Iterator[tuple[str, Tensor]]:
    """CLIP's tensors -> those of the InternViT of :func:`internvit_config`, under the names of a bare folder.

    Blocks pass one tensor at a time and keep their types; embeddings are computed in float32. Tensors of the text
    encoder and the heads are left out. ConfigError names a tensor of the vision encoder that is not CLIP's, or missing.
    """
    if pre_norm not in ("fold", "omit"):
        raise ConfigError(f'pre_norm is "{pre_norm}"; known: fold, omit')
    held, joined = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in _own(tensors):
        block = _BLOCK.fullmatch(name)
        if name in _BEFORE:
            held[name] = tensor
        elif block is None:
            if not name.startswith("post_layernorm.") and not name.endswith("position_ids"):
                raise ConfigError(f"the vision encoder holds {name}, which CLIP has not")
        elif block[2] in _PARTS:
            yield f"encoder.layers.{block[1]}.{_PARTS[block[2]]}.{block[3]}", tensor
            if (block[2], block[3]) == ("layer_norm1", "weight"):
                for scale in ("ls1", "ls2"):
                    yield f"encoder.layers.{block[1]}.{scale}", torch.ones_like(tensor)
        elif block[2] in _JOINED:
            joined[name] = tensor
            names = [f"encoder.layers.{block[1]}.{part}.{block[3]}" for part in _JOINED]
            if all(one in joined for one in names):
                yield f"encoder.layers.{block[1]}.attn.qkv.{block[3]}", torch.cat([joined.pop(one) for one in names])
        else:
            raise ConfigError(f"the vision encoder holds {name}, which CLIP has not")
    if missing := [name for name in _BEFORE if name not in held]:
        raise ConfigError(f"the vision encoder lacks {missing[0]}; fetch the weights again")
    if joined:
        raise ConfigError(f"the vision encoder has {min(joined)} without its two neighbours; fetch the weights again")
    table, dtype = held[_BEFORE[2]], held[_BEFORE[0]].dtype
    grid = image_size // int({**DEFAULTS, **_vision(raw)}["patch_size"])
    if table.is_meta:
        made = {
            "class_embedding": table.new_empty(1, 1, table.shape[1]),
            "position_embedding": table.new_empty(1, grid**2 + 1, table.shape[1]),
            "patch_embedding.weight": held[_BEFORE[1]],
            "patch_embedding.bias": table.new_empty(table.shape[1]),
        }
    else:
        made = _embeddings({name: tensor.float() for name, tensor in held.items()}, _vision(raw), grid, pre_norm)
    yield from ((f"embeddings.{name}", tensor.to(dtype)) for name, tensor in made.items())


def _vision(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the vision encoder."""
    if not is_clip(raw):
        raise ConfigError(f'this is a config of "{raw.get("model_type")}", not of CLIP')
    given = raw.get("vision_config", {}) if raw["model_type"] == "clip" else raw
    return Fields(given, "vision_config").raw


def _own(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Those of the vision encoder, without the prefix that most files have."""
    others = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
    for name, tensor in tensors:
        if not name.startswith(others):
            yield name.removeprefix("vision_model."), tensor


def _embeddings(
    held: Mapping[str, Tensor], config: Mapping[str, Any], grid: int, pre_norm: PreNorm
) -> dict[str, Tensor]:
    """Class token, convolution and positions of InternViT, from float32 tensors."""
    token, kernel, table, gain, shift = (held[name] for name in _BEFORE)
    std, clip_std = torch.tensor(STD).view(1, 3, 1, 1), torch.tensor(CLIP_STD).view(1, 3, 1, 1)
    offset = (torch.tensor(MEAN) - torch.tensor(CLIP_MEAN)).view(1, 3, 1, 1) / clip_std
    bias, kernel = (kernel * offset).sum((1, 2, 3)), kernel * std / clip_std
    first, places = token + table[0], _resized(table[1:], grid)  # (hidden,), (grid * grid, hidden)
    if pre_norm == "fold":
        eps = float(config.get("layer_norm_eps", DEFAULTS["layer_norm_eps"]))
        kernel, bias, places = kernel - kernel.mean(0), bias - bias.mean(), places - places.mean(1, keepdim=True)
        scale = gain * _inverse_deviation(kernel, bias, places, grid)
        kernel, bias = kernel * scale[:, None, None, None], bias * scale
        places = places * scale + shift
        first = F.layer_norm(first, first.shape, gain, shift, eps)
    return {
        "class_embedding": first[None, None],
        "position_embedding": torch.cat([torch.zeros_like(first)[None], places])[None],
        "patch_embedding.weight": kernel,
        "patch_embedding.bias": bias,
    }


def _resized(places: Tensor, grid: int) -> Tensor:
    """(side * side, hidden) -> (grid * grid, hidden), bicubic."""
    side = round(len(places) ** 0.5)
    square = places.T.reshape(1, -1, side, side)
    return F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)[0].flatten(1).T


def _inverse_deviation(kernel: Tensor, bias: Tensor, places: Tensor, grid: int) -> Tensor:
    """The constant that stands best, by least squares, for 1 / deviation of the patches of generated pictures.

    Their channels have no mean any more.
    """
    side = kernel.shape[-1]
    patches = F.conv2d(generated_pictures(grid * side), kernel, bias, stride=side).flatten(2).transpose(1, 2)
    deviation = (patches + places).pow(2).mean(-1).sqrt()  # (pictures, patches)
    return deviation.mean() / deviation.pow(2).mean()


def generated_pictures(size: int, count: int = PICTURES, seed: int = SEED) -> Tensor:
    """(count, 3, size, size) as InternViT takes them: noise whose amplitude falls with frequency as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    fall = (rows.square() + columns.square()).sqrt().clamp_min(1 / size)
    noise = torch.fft.irfft2(torch.fft.rfft2(torch.randn(count, 3, size, size, generator=generator)) / fall)
    grey = noise.mean(1, keepdim=True)
    noise = 0.85 * grey + 0.3 * noise  # colours of photographs go together
    noise = noise / noise.std((1, 2, 3), keepdim=True)
    pixels = (0.45 + 0.25 * noise).clamp(0, 1)
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
