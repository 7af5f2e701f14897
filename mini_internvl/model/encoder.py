"""An encoder alone in the place of a whole model: what distillation trains.

It is an InternVL whose projector and language model are there and empty, so whatever trains, plans or shares a model
among processes takes it as it is. It reads pictures of one tile each and has no tokens. Its folder is a bare InternViT:
config.json holds the fields of the encoder, and the names of its weights have no prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mini_internvl.files import new_folder, write_json
from mini_internvl.model.config import DecoderConfig, RopeConfig, VisionConfig, VLMConfig
from mini_internvl.model.files import CONFIG, write_tensors
from mini_internvl.model.vision import InternViT
from mini_internvl.model.vlm import InternVL

NO_DECODER = DecoderConfig(
    architecture="none", vocab_size=0, hidden_size=0, intermediate_size=0, layers=0, heads=1, kv_heads=1, head_dim=2,
    norm_eps=1e-6, rope=RopeConfig(theta=10000.0),
)  # fmt: skip


class NoDecoder(nn.Module):
    """The place of a language model, empty."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.norm, self.lm_head = nn.Identity(), nn.Identity(), nn.Identity()
        self.layers = nn.ModuleList()


class EncoderAlone(InternVL):
    """InternViT with no projector and no language model behind it."""

    def __init__(self, config: VLMConfig) -> None:
        nn.Module.__init__(self)
        self.config, self.image_token_id = config, None
        self.vision_model = InternViT(config.vision)
        self.mlp1 = nn.Sequential()
        self.language_model: Any = NoDecoder()

    @property
    def device(self) -> torch.device:
        return self.vision_model.embeddings.class_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_model.dtype

    def project_patches(self, x: Tensor, short: bool = False) -> Tensor:
        """(N, patches, hidden) as they are."""
        return x


def encoder_config(raw: Mapping[str, Any]) -> VLMConfig:
    """From a bare InternViT's config.json; ConfigError names a field that is wrong."""
    vision = VisionConfig.from_official(raw)
    return VLMConfig(
        vision=vision, llm=NO_DECODER, template="", downsample_ratio=1.0, image_size=vision.image_size, max_tiles=1,
        use_thumbnail=False, official=dict(raw),
    )  # fmt: skip


def save_encoder(
    model: EncoderAlone, folder: str | Path, *, dtype: torch.dtype, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a bare InternViT folder, which appears complete or not at all."""
    folder = Path(folder)
    with new_folder(folder) as temporary:
        name = str(dtype).removeprefix("torch.")
        write_json(temporary / CONFIG, {**model.config.official, "torch_dtype": name})
        state = model.vision_model.state_dict()
        converted = ((key, tensor.detach().to("cpu", dtype)) for key, tensor in state.items())
        write_tensors(converted, temporary, metadata=metadata)
    return folder
