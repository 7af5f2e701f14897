"""Model configurations: typed views of the official config.json, checked when read.

The raw dictionary travels along (``VLMConfig.official``), so that saving writes back every field that was read.
Source of fields and defaults: ``configuration_internvl_chat.py``, ``configuration_intern_vit.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RopeKind = Literal["default", "linear", "dynamic", "longrope"]


class ConfigError(ValueError):
    """A config.json that is not of this family, or is wrong in one field."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """InternViT."""

    hidden_size: int
    """Width."""
    intermediate_size: int
    """Width inside the MLP."""
    layers: int
    """Number of blocks."""
    heads: int
    """Attention heads."""
    image_size: int = 448
    """Tile side in pixels that the position table was made for."""
    patch_size: int = 14
    """Patch side in pixels."""
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Norm before attention and MLP."""
    norm_eps: float = 1e-6
    """Added to the variance."""
    qkv_bias: bool = True
    """Bias of the fused query, key, value projection."""
    qk_norm: bool = False
    """Whether queries and keys are normalised over all heads together (the 6B)."""
    layer_scale: float = 1.0
    """Initial value of the residual scales (``initializer_factor``)."""
    initializer_range: float = 0.02
    """Standard deviation of freshly made weights."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block while training."""
    attention_dropout: float = 0.0
    """Dropout on attention weights while training."""

    def __post_init__(self) -> None:
        if self.norm_type not in ("layer_norm", "rms_norm"):
            raise ConfigError(f'vision_config.norm_type is "{self.norm_type}"; known: layer_norm, rms_norm')
        if self.hidden_size % self.heads:
            raise ConfigError(f"vision_config: hidden_size {self.hidden_size} is no multiple of {self.heads} heads")
        if self.image_size % self.patch_size:
            raise ConfigError(f"vision_config: image_size {self.image_size} is no multiple of {self.patch_size}")

    @classmethod
    def from_official(cls, raw: Mapping[str, Any]) -> VisionConfig:
        """Read a ``vision_config`` (or a bare InternViT config.json)."""
        activation = raw.get("hidden_act", "gelu")
        if activation != "gelu":
            raise ConfigError(f'vision_config.hidden_act is "{activation}"; InternViT uses gelu')
        return cls(
            hidden_size=_need(raw, "hidden_size", "vision_config"),
            intermediate_size=_need(raw, "intermediate_size", "vision_config"),
            layers=_need(raw, "num_hidden_layers", "vision_config"),
            heads=_need(raw, "num_attention_heads", "vision_config"),
            image_size=raw.get("image_size", 224),
            patch_size=raw.get("patch_size", 14),
            norm_type=raw.get("norm_type", "rms_norm"),
            norm_eps=raw.get("layer_norm_eps", 1e-6),
            qkv_bias=raw.get("qkv_bias", False),
            qk_norm=raw.get("qk_normalization", True),
            layer_scale=raw.get("initializer_factor", 0.1),
            initializer_range=raw.get("initializer_range", 0.02),
            drop_path_rate=raw.get("drop_path_rate", 0.0),
            attention_dropout=raw.get("attention_dropout", 0.0),
        )


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding."""

    theta: float
    """Base of the wavelengths."""
    kind: RopeKind = "default"
    """``dynamic`` raises the base beyond ``max_positions`` (InternLM2); ``longrope`` is Phi-3's "su"."""
    factor: float = 1.0
    """Scale of ``linear`` and ``dynamic``."""
    max_positions: int = 32768
    """``max_position_embeddings`` of the config."""
    original_max_positions: int = 0
    """longrope: beyond this many positions the long factors are used."""
    short_factor: tuple[float, ...] = ()
    """longrope: one divisor per frequency for short sequences."""
    long_factor: tuple[float, ...] = ()
    """longrope: one divisor per frequency for long sequences."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The language model, in the terms that the three backbones share."""

    architecture: str
    """Name in ``llm_config.architectures``; picks the file in ``model/llms``."""
    vocab_size: int
    """Rows of the embedding table, added tokens included."""
    hidden_size: int
    """Width."""
    intermediate_size: int
    """Width inside the gated MLP."""
    layers: int
    """Number of blocks."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads; each serves ``heads / kv_heads`` query heads."""
    head_dim: int
    """Width of one head."""
    norm_eps: float
    """RMSNorm epsilon."""
    rope: RopeConfig
    """Rotary embedding."""
    qkv_bias: bool = False
    """Bias of queries, keys and values."""
    sliding_window: int | None = None
    """Number of latest positions a token sees; ``None`` for all."""
    initializer_range: float = 0.02
    """Standard deviation of freshly made weights."""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError(f"llm_config: {self.heads} heads are no multiple of {self.kv_heads} key-value heads")


@dataclass(frozen=True, kw_only=True)
class VLMConfig:
    """The whole model."""

    vision: VisionConfig
    """The encoder."""
    llm: DecoderConfig
    """The decoder."""
    template: str
    """Name of the chat template."""
    system_message: str | None = None
    """Replaces the template's system message when config.json carries one."""
    downsample_ratio: float = 0.5
    """Side of the token grid over side of the patch grid."""
    ps_version: Literal["v1", "v2"] = "v2"
    """Pixel unshuffle order; v1 leaves the token grid transposed."""
    select_layer: int = -1
    """Which hidden state of the encoder is used."""
    image_size: int = 448
    """Tile side in pixels."""
    min_tiles: int = 1
    """Fewest tiles of an image."""
    max_tiles: int = 12
    """Most tiles of an image, thumbnail not counted."""
    use_thumbnail: bool = True
    """Whether an image of several tiles gets a thumbnail tile."""
    image_token_id: int | None = None
    """Id of ``<IMG_CONTEXT>``; ``None`` until a tokenizer or the vocabulary layout gives it."""
    official: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The config.json as read, for saving."""

    def __post_init__(self) -> None:
        if self.ps_version not in ("v1", "v2"):
            raise ConfigError(f'ps_version is "{self.ps_version}"; known: v1, v2')
        side = self.image_size // self.vision.patch_size * self.downsample_ratio
        if side != int(side):
            raise ConfigError(
                f"force_image_size {self.image_size} with patch {self.vision.patch_size} and downsample_ratio "
                f"{self.downsample_ratio} gives {side} tokens a side; it must be whole"
            )

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile (256 for the released sizes)."""
        return int((self.image_size // self.vision.patch_size * self.downsample_ratio) ** 2)

    @property
    def projector_input(self) -> int:
        """Width of one visual token before the projector."""
        return int(self.vision.hidden_size / self.downsample_ratio**2)

    @classmethod
    def from_official(cls, raw: Mapping[str, Any]) -> VLMConfig:
        """Read an official ``InternVLChatModel`` config.json.

        Raises:
            ConfigError: the file is of another model, or a field is missing or unknown.
        """
        from mini_internvl.model import llms

        model_type = raw.get("model_type")
        if model_type != "internvl_chat" or "vision_config" not in raw or "llm_config" not in raw:
            names = raw.get("architectures") or ["unknown"]
            raise ConfigError(
                f'this is a config of "{model_type}" ({names[0]}), not of "internvl_chat"; '
                "give a folder in the official InternVLChatModel layout"
            )
        vision = VisionConfig.from_official(raw["vision_config"])
        return cls(
            vision=vision,
            llm=llms.read_config(raw["llm_config"]),
            template=_need(raw, "template", "config.json"),
            system_message=raw.get("system_message"),
            downsample_ratio=raw.get("downsample_ratio", 0.5),
            ps_version=raw.get("ps_version", "v1"),
            select_layer=raw.get("select_layer", -1),
            image_size=raw.get("force_image_size") or vision.image_size,
            min_tiles=raw.get("min_dynamic_patch", 1),
            max_tiles=raw.get("max_dynamic_patch", 6) if raw.get("dynamic_image_size", True) else 1,
            use_thumbnail=bool(raw.get("use_thumbnail", False)),
            image_token_id=raw.get("img_context_token_id"),
            official=copy.deepcopy(dict(raw)),
        )


def _need(raw: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in raw:
        raise ConfigError(f'{where}: the field "{key}" is missing')
    return raw[key]
