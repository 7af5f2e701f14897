"""Model configurations: typed views of the official config.json, checked when read (``fields.py``).

The raw dictionary travels along (``VLMConfig.official``), so that saving writes back every field that was read.
Source of fields and defaults: ``configuration_internvl_chat.py``, ``configuration_intern_vit.py``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from mini_internvl.model.fields import NEEDED, ConfigError, Fields, agreed

RopeKind = Literal["default", "linear", "dynamic", "longrope"]
MAX_WIDTH, MAX_HIDDEN, MAX_LAYERS, MAX_HEADS, MAX_SIDE = 100_000, 1_000_000, 1_000, 10_000, 100_000
MAX_POSITIONS = 10**9
"""Sizes beyond these are taken for damage: no model of this kind comes near."""
MAX_TILES = 1_000
"""Most tiles of an image that a config may ask for; the released ones ask for 12, the paper uses up to 40."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """InternViT."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    image_size: int = 448  # tile side in pixels that the position table was made for
    patch_size: int = 14
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False  # whether queries and keys are normalised over all heads together (the 6B)
    layer_scale: float = 1.0  # initial value of the residual scales (``initializer_factor``)
    initializer_range: float = 0.02
    drop_path_rate: float = 0.0  # stochastic depth of the last block while training
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.norm_type not in ("layer_norm", "rms_norm"):
            raise ConfigError(f'vision_config.norm_type is "{self.norm_type}"; known: layer_norm, rms_norm')
        if self.hidden_size % self.heads:
            raise ConfigError(f"vision_config: hidden_size {self.hidden_size} is no multiple of {self.heads} heads")
        if self.image_size % self.patch_size:
            raise ConfigError(f"vision_config: image_size {self.image_size} is no multiple of {self.patch_size}")

    @classmethod
    def from_official(cls, raw: Mapping[str, Any] | Fields) -> VisionConfig:
        """Read a ``vision_config`` (or a bare InternViT config.json); ConfigError names a field that is wrong."""
        fields = raw if isinstance(raw, Fields) else Fields(raw, "vision_config")
        activation = fields.text("hidden_act", "gelu", quiet=True)
        if activation != "gelu":
            raise ConfigError(f'vision_config.hidden_act is "{activation}"; InternViT uses gelu')
        if fields.flag("use_moe", False, quiet=True):
            raise ConfigError("vision_config.use_moe is true; this InternViT has no experts")
        return cls(
            hidden_size=fields.integer("hidden_size", high=MAX_WIDTH),
            intermediate_size=fields.integer("intermediate_size", high=MAX_HIDDEN),
            layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            heads=fields.integer("num_attention_heads", high=MAX_HEADS),
            image_size=fields.integer("image_size", 224, high=MAX_SIDE),
            patch_size=fields.integer("patch_size", 14, high=MAX_SIDE),
            norm_type=fields.text("norm_type", "rms_norm"),
            norm_eps=fields.number("layer_norm_eps", 1e-6, high=1.0),
            qkv_bias=fields.flag("qkv_bias", False),
            qk_norm=fields.flag("qk_normalization", True),
            layer_scale=fields.number("initializer_factor", 0.1, low=-1e6, high=1e6, quiet=True),
            initializer_range=fields.number("initializer_range", 0.02, high=1e3, quiet=True),
            drop_path_rate=fields.number("drop_path_rate", 0.0, high=0.999, quiet=True),
            attention_dropout=fields.number("attention_dropout", 0.0, high=0.999, quiet=True),
        )


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding."""

    theta: float
    kind: RopeKind = "default"  # ``dynamic`` raises the base beyond ``max_positions``; ``longrope`` is Phi-3's "su"
    factor: float = 1.0
    max_positions: int = 32768
    original_max_positions: int = 0  # longrope: beyond this many positions the long factors are used
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()  # longrope: these and the short ones divide the frequencies

    @property
    def context_length(self) -> int:
        """Most positions of a sequence; "linear" and "dynamic" stretch those that the model was trained with."""
        return int(self.max_positions * self.factor) if self.kind in ("linear", "dynamic") else self.max_positions

    @property
    def attention_factor(self) -> float:
        """longrope: cosines and sines are multiplied by it."""
        original = self.original_max_positions
        if not 1 < original < self.max_positions:
            return 1.0
        return math.sqrt(1 + math.log(self.max_positions / original) / math.log(original))

    @classmethod
    def from_official(cls, fields: Fields, *, head_dim: int, max_positions: int) -> RopeConfig:
        """Read the fields of an ``llm_config``, in both generations of names.

        Up to transformers 4 ``rope_theta`` stood beside ``rope_scaling``; since 5 everything is in ``rope_parameters``.
        ConfigError tells of an unknown kind, factor lists of the wrong length, or two names with different values.
        """
        limit = fields.integer("max_position_embeddings", max_positions, high=MAX_POSITIONS)
        tables = fields.table("rope_parameters"), fields.table("rope_scaling")
        nested = [table for table in tables if table is not None and table.raw]
        places = [fields, *nested]
        theta = agreed("base", places, ["rope_theta"], partial(Fields.number, above_low=True, high=1e12))
        theta = theta or fields.number("rope_theta", 10000.0, high=1e12)
        for place in nested:
            for name, value in place.raw.items():
                if isinstance(value, Mapping):
                    place.refuse(name, "all layers of this family turn alike")
        names = ["rope_type", "type"]
        kind: RopeKind = agreed("kind", nested, names, _rope_kind) or "default"
        source = next((place for place in nested if any(map(place.has, names))), fields)
        if agreed("share", places, ["partial_rotary_factor"], partial(Fields.number, high=1.0)) not in (None, 1.0):
            raise ConfigError(f"{fields.path('partial_rotary_factor')} is not 1; this family turns whole heads")
        rope = cls(theta=theta, kind=kind, max_positions=limit)
        if kind in ("linear", "dynamic"):
            return replace(rope, factor=source.number("factor", above_low=True, high=1e6))
        if kind == "longrope":
            length = "original_max_position_embeddings"
            original = agreed("length", places, [length], partial(Fields.integer, high=MAX_POSITIONS))
            rope = replace(rope, original_max_positions=original or fields.integer(length, 4096, high=MAX_POSITIONS))
            follow = {"factor": limit / rope.original_max_positions, "attention_factor": rope.attention_factor}
            for name, value in follow.items():  # they may be written, but not differ
                given = source.number(name, value, high=1e9, quiet=True)
                if not math.isclose(given, value, rel_tol=1e-6):
                    raise ConfigError(f"{source.path(name)} is {given}; this family has {value}")
            short, long = (source.numbers(name, head_dim // 2) for name in ("short_factor", "long_factor"))
            return replace(rope, short_factor=short, long_factor=long)
        return rope


def _rope_kind(fields: Fields, name: str) -> RopeKind:
    kind: RopeKind | Literal["su"] = fields.text(name, known=("default", "linear", "dynamic", "su", "longrope"))
    return "longrope" if kind == "su" else kind


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The language model, in the terms that the backbones share."""

    architecture: str  # name in ``llm_config.architectures``; picks the file in ``model/llms``
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    qkv_bias: bool = False
    qk_norm: bool = False  # whether queries and keys are normalised head by head before they are rotated (Qwen3)
    sliding_window: int | None = None  # number of latest positions a token sees; ``None`` for all
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError(f"llm_config: {self.heads} heads are no multiple of {self.kv_heads} key-value heads")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError(f"llm_config: heads of {self.head_dim} values; rotary positions need an even number")

    @classmethod
    def from_official(
        cls,
        fields: Fields,
        *,
        architecture: str,
        norm_eps: float,
        max_positions: int,
        head_dim: int | None = None,
        **changes: Any,
    ) -> DecoderConfig:
        """Read the fields that all backbones spell alike, and take ``changes``; ConfigError names one that is wrong.

        ``norm_eps``, ``max_positions`` and ``head_dim`` are what an absent ``rms_norm_eps``,
        ``max_position_embeddings`` or ``head_dim`` means; ``None`` shares ``hidden_size`` among the heads.
        """
        fields.text("hidden_act", "silu", known=("silu",), quiet=True)
        width = fields.integer("hidden_size", high=MAX_WIDTH)
        heads = fields.integer("num_attention_heads", high=MAX_HEADS)
        if head_dim is None and not fields.has("head_dim") and width % heads:
            raise ConfigError(f"llm_config: hidden_size {width} is no multiple of {heads} heads")
        quiet = head_dim is None
        head_dim = fields.integer("head_dim", head_dim or width // heads, low=2, high=MAX_WIDTH, quiet=quiet)
        return cls(
            architecture=architecture,
            vocab_size=fields.integer("vocab_size", high=10_000_000),
            hidden_size=width,
            intermediate_size=fields.integer("intermediate_size", high=MAX_HIDDEN),
            layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            heads=heads,
            kv_heads=fields.integer("num_key_value_heads", heads, high=MAX_HEADS),
            head_dim=head_dim,
            norm_eps=fields.number("rms_norm_eps", norm_eps, high=1.0),
            rope=RopeConfig.from_official(fields, head_dim=head_dim, max_positions=max_positions),
            initializer_range=fields.number("initializer_range", 0.02, high=1e3, quiet=True),
            **changes,
        )


@dataclass(frozen=True, kw_only=True)
class FlashConfig:
    """Which tiles of a Flash model get few visual tokens (``model/flash.py``)."""

    relative: float  # those above this quantile of a conversation's tiles, ...
    absolute: float  # ... and with at least this probability that few are enough
    enabled: bool = True  # whether the engine routes at all

    def __post_init__(self) -> None:
        if not (0 <= self.relative <= 1 and 0 <= self.absolute <= 1):
            raise ConfigError(f"flash thresholds are {self.relative} and {self.absolute}; each must be from 0 to 1")

    @classmethod
    def from_official(cls, fields: Fields) -> FlashConfig | None:
        """``None`` for a model without a router."""
        if not (fields.has("flash_mode") or fields.has("flash_relative_threshold")):
            return None
        enabled = fields.flag("flash_mode", True, quiet=True)
        default = NEEDED if enabled else 0.0
        relative, absolute = (
            fields.number(f"flash_{name}_threshold", default, high=1.0, quiet=True) for name in ("relative", "absolute")
        )
        return cls(relative=relative, absolute=absolute, enabled=enabled)


@dataclass(frozen=True, kw_only=True)
class VLMConfig:
    """The whole model."""

    vision: VisionConfig
    llm: DecoderConfig
    template: str
    system_message: str | None = None
    """Replaces the template's system message when config.json carries one."""
    downsample_ratio: float = 0.5
    """Side of the token grid over side of the patch grid."""
    ps_version: Literal["v1", "v2"] = "v2"
    """Pixel unshuffle order; v1 leaves the token grid transposed."""
    select_layer: int = -1
    image_size: int = 448
    min_tiles: int = 1
    max_tiles: int = 12
    """Most tiles of an image, thumbnail not counted."""
    use_thumbnail: bool = True
    flash: FlashConfig | None = None
    """Of a model whose router may give a tile fewer tokens; ``None`` for all others."""
    image_token_id: int | None = None
    """Of ``<IMG_CONTEXT>``; ``None`` until a tokenizer or the vocabulary gives it."""
    official: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The config.json as read, for saving."""
    defaults: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Fields that config.json lacks, with the values taken."""

    def __post_init__(self) -> None:
        if self.ps_version not in ("v1", "v2"):
            raise ConfigError(f'ps_version is "{self.ps_version}"; known: v1, v2')
        if self.min_tiles > self.max_tiles:
            raise ConfigError(f"min_dynamic_patch {self.min_tiles} is more than max_dynamic_patch {self.max_tiles}")
        if not -self.vision.layers - 1 <= self.select_layer <= self.vision.layers:
            raise ConfigError(f"select_layer is {self.select_layer}, but the encoder has {self.vision.layers} layers")
        side = self.image_size // self.vision.patch_size * self.downsample_ratio
        if side != int(side) or side < 1:
            raise ConfigError(
                f"force_image_size {self.image_size} with patch {self.vision.patch_size} and downsample_ratio "
                f"{self.downsample_ratio} gives {side} tokens a side; it must be whole"
            )
        if self.flash and side * self.downsample_ratio != int(side * self.downsample_ratio):
            raise ConfigError(f"a Flash model's short tiles have {side * self.downsample_ratio} tokens a side")

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile (256 for the released sizes)."""
        return int((self.image_size // self.vision.patch_size * self.downsample_ratio) ** 2)

    @property
    def short_tokens(self) -> int:
        """Visual tokens of a tile that a Flash model's router shortens (64 for the released sizes)."""
        return int(self.tokens_per_tile * self.downsample_ratio**2)

    @property
    def projector_input(self) -> int:
        """Width of one visual token before the projector."""
        return int(self.vision.hidden_size / self.downsample_ratio**2)

    @classmethod
    def from_official(cls, raw: Mapping[str, Any]) -> VLMConfig:
        """Read an official ``InternVLChatModel`` config.json; ConfigError names a field that is wrong."""
        from mini_internvl.model import llms

        if raw.get("model_type") != "internvl_chat" or "vision_config" not in raw or "llm_config" not in raw:
            raise ConfigError(f"{of_another_model(raw)}; give a folder in the official InternVLChatModel layout")
        fields = Fields(raw)
        vision = VisionConfig.from_official(fields.needed_table("vision_config"))
        llm = llms.read_config(fields.needed_table("llm_config"))
        if fields.has("image_fold"):
            fields.refuse("image_fold", "this model does not fold images; every released one has null")
        dynamic = fields.flag("dynamic_image_size", True)
        most = fields.integer("max_dynamic_patch", 6, high=MAX_TILES)
        least = fields.integer("min_dynamic_patch", 1, high=MAX_TILES)
        return cls(
            vision=vision,
            llm=llm,
            template=fields.text("template"),
            system_message=fields.text("system_message", None, quiet=True),
            downsample_ratio=fields.number("downsample_ratio", 0.5, above_low=True, high=1.0),
            ps_version=fields.text("ps_version", "v1"),
            select_layer=fields.integer("select_layer", -1, low=-MAX_LAYERS, high=MAX_LAYERS),
            image_size=fields.integer("force_image_size", vision.image_size, high=MAX_SIDE),
            min_tiles=least if dynamic else 1,
            max_tiles=most if dynamic else 1,
            use_thumbnail=fields.flag("use_thumbnail", False),
            flash=FlashConfig.from_official(fields),
            image_token_id=fields.integer("img_context_token_id", None, low=0, high=llm.vocab_size - 1, quiet=True),
            defaults=tuple(fields.taken),
            official=copy.deepcopy(dict(raw)),
        )


def of_another_model(raw: Mapping[str, Any]) -> str:
    """What messages call the model of a config.json from another family."""
    names = raw.get("architectures")
    first = names[0] if isinstance(names, list) and names else "unknown"
    return f'this is a config of "{raw.get("model_type")}" ({first}), not of "internvl_chat"'
