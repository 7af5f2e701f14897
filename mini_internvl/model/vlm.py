"""The whole model: tiles -> InternViT -> pixel unshuffle -> projector -> rows spliced into the decoder's input.

Source: ``internvl/model/internvl_chat/modeling_internvl_chat.py``; paper section 3.1. Where the original cuts surplus
visual tokens and carries on with a warning, this model raises: a mismatch is always a bug in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mini_internvl.model import flash
from mini_internvl.model.attention import has_values
from mini_internvl.model.cache import KVCache
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.decoder import Decoder
from mini_internvl.model.vision import InternViT


class TokenCountError(ValueError):
    """The prompt reserves another number of visual tokens than the images give."""


def pixel_unshuffle(x: Tensor, ratio: float, version: str = "v2") -> Tensor:
    """Trade the area of a square token grid for width: (N, S, S, C) -> (N, S * ratio, S * ratio, C / ratio**2).

    Version "v2" keeps the spatial axes in order, "v1" leaves them transposed.
    """
    n, w, h, c = x.shape
    x = x.view(n, w, int(h * ratio), int(c / ratio)).permute(0, 2, 1, 3).contiguous()
    x = x.view(n, int(h * ratio), int(w * ratio), int(c / ratio**2))
    return x.permute(0, 2, 1, 3).contiguous() if version == "v2" else x


class InternVL(nn.Module):
    """A vision-language model of the InternVL2 family."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.config = config
        self.image_token_id = config.image_token_id
        self.vision_model = InternViT(config.vision)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(config.projector_input),
            nn.Linear(config.projector_input, config.llm.hidden_size),
            nn.GELU(),
            nn.Linear(config.llm.hidden_size, config.llm.hidden_size),
        )
        if config.flash:
            self.mlp2 = flash.short_projector(config)
            self.pooling_before_gating = flash.CrossAttentionPooling(config.vision.hidden_size)
            self.gating = flash.Gating(config.vision.hidden_size)
        self.language_model = Decoder(config.llm)

    @property
    def device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic; int8 weights compute in that of the norms."""
        weight = self.language_model.embed_tokens.weight
        return weight.dtype if weight.is_floating_point() else self.language_model.norm.weight.dtype

    @property
    def types(self) -> tuple[str, ...]:
        """Names of the type of the arithmetic and, where it is another, of the decoder's weights."""
        found = dict.fromkeys((self.dtype, self.language_model.embed_tokens.weight.dtype))
        return tuple(str(kind).removeprefix("torch.") for kind in found)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) normalised tiles -> (N, tokens per tile, LLM hidden) visual tokens."""
        return self.project(self.vision_model(pixel_values.to(self.vision_model.dtype), self.config.select_layer))

    def project(self, hidden: Tensor) -> Tensor:
        """(N, 1 + patches, hidden) of the encoder -> (N, tokens per tile, LLM hidden); the class token is dropped."""
        return self.project_patches(hidden[:, 1:])

    def project_patches(self, x: Tensor, short: bool = False) -> Tensor:
        """(N, patches, hidden) of the encoder -> (N, tokens per tile, LLM hidden); ``short``: a Flash model's few."""
        side, ratio = int(x.shape[1] ** 0.5), self.config.downsample_ratio ** (1 + short)
        x = pixel_unshuffle(x.reshape(len(x), side, side, x.shape[-1]), ratio, self.config.ps_version)
        projector = self.mlp2 if short else self.mlp1
        return projector(x.flatten(1, 2).to(next(projector.parameters()).dtype))  # float32 where it trains

    def embed(self, input_ids: Tensor, visual_tokens: Tensor | None) -> Tensor:
        """Embed ids (B, T) and write the visual tokens (N, tokens per tile, hidden) over the ``<IMG_CONTEXT>`` rows.

        TokenCountError gives the two counts where they differ. They are not looked at while training on an accelerator,
        which would have to be waited for: there the data code makes both.
        """
        x = self.language_model.embed_tokens(input_ids)
        if self.image_token_id is None:
            if visual_tokens is not None and len(visual_tokens):
                raise ValueError("image_token_id is not set: give the id of <IMG_CONTEXT> (model.image_token_id = ...)")
            return x
        places = input_ids == self.image_token_id
        given = 0 if visual_tokens is None else visual_tokens.shape[0] * visual_tokens.shape[1]
        if has_values(places) and (places.is_cpu or not self.training) and (wanted := int(places.sum())) != given:
            raise TokenCountError(
                f"the prompt holds {wanted} <IMG_CONTEXT> tokens but the images give {given} visual tokens"
            )
        if visual_tokens is None or not given:
            return x
        return x.masked_scatter(places[..., None], visual_tokens.to(x.dtype))

    def hidden(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        visual_tokens: Tensor | None = None,
        **placed: Any,
    ) -> Tensor:
        """Final hidden states (B, T, hidden); arguments as in :meth:`forward`, ``placed`` as in the decoder's."""
        if visual_tokens is None and pixel_values is not None and len(pixel_values):
            visual_tokens = self.encode_images(pixel_values)
        return self.language_model(self.embed(input_ids, visual_tokens), padding=attention_mask, **placed)

    def states(
        self, input_ids: Tensor, depths: Sequence[int], *, visual_tokens: Tensor | None = None, **placed: Any
    ) -> list[Tensor]:
        """Hidden states (B, T, hidden) after so many decoder blocks, for each of ``depths``; see the decoder's."""
        return self.language_model.states(self.embed(input_ids, visual_tokens), depths, **placed)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
        visual_tokens: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of every position, in the model's type; TokenCountError as in :meth:`embed`.

        Args:
            input_ids: (B, T) token ids, ``<IMG_CONTEXT>`` where visual tokens go.
            pixel_values: (N, 3, S, S) normalised tiles of all rows in order, or ``None``.
            attention_mask: (B, T), 1 at real tokens; with a cache (B, cached + T).
            position_ids: (B, T); ``None`` counts the real tokens, cached ones included.
            cache: earlier keys and values; receives the new ones.
            visual_tokens: (N, tokens per tile, hidden) made before by :meth:`encode_images`, instead of pixels.
        """
        placed: dict[str, Any] = {"position_ids": position_ids, "cache": cache, "visual_tokens": visual_tokens}
        return self.language_model.lm_head(self.hidden(input_ids, pixel_values, attention_mask, **placed))
