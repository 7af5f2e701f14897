"""The layout of Hugging Face transformers: ``InternVLForConditionalGeneration``, model type "internvl".

Its text model is transformers' own Qwen2, Llama (for InternLM2, whose ``wqkv`` is cut apart) or Phi-3. Two spellings of
tensor names exist and both are read: ``language_model.model.*`` with ``vision_tower.*``, which every release writes to
disk and which is written here, and ``model.language_model.*`` with ``model.vision_tower.*``, the names in memory.

Unusual: what the layout has no field for (template, tile limits, drop path, ...) is kept in config.json under
``mini_internvl``, a key that transformers ignores and writes back. A value that the layout does have a field for always
comes from that field, so a checkpoint edited or trained elsewhere is read as it is now.
Source: ``configuration_internvl.py`` and ``modeling_internvl.py`` of transformers 5; names as in
``convert_internvl_weights_to_hf.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mini_internvl.model import llms
from mini_internvl.model.config import ConfigError, DecoderConfig, VLMConfig
from mini_internvl.model.fields import Fields, is_integer

if TYPE_CHECKING:
    from torch import Tensor

NAME = "native"
EXTRA = "mini_internvl"
"""Key of a native config.json that holds the official one."""
TIED = "native_tied_embeddings"
"""Key of an official config made here: the native one ties ``lm_head`` to the embedding table."""
QWEN2_5_IMAGE_TOKEN = 151667
"""Id of <IMG_CONTEXT> in every Qwen2.5 based member; the 2.0 family ends before it."""

_TEXT = {"qwen2": "Qwen2ForCausalLM", "llama": "InternLM2ForCausalLM", "phi3": "Phi3ForCausalLM"}
_TEXT_CLASSES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM", "phi3": "Phi3ForCausalLM"}
_OFFICIAL_TYPES = {"qwen2": "qwen2", "llama": "internlm2", "phi3": "phi3"}
_TEMPLATES = {"qwen2": "Hermes-2", "llama": "internlm2-chat", "phi3": "phi3-chat"}
_SAME_TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings"),
    *("original_max_position_embeddings", "sliding_window", "use_sliding_window", "max_window_layers"),
    *("initializer_range", "attention_dropout", "resid_pdrop", "embd_pdrop", "use_cache", "bos_token_id"),
    *("eos_token_id", "pad_token_id"),
)
"""Fields of the text model that both layouts spell alike."""
_VISION = {
    "hidden_size": ("hidden_size", "hidden_size", 1024),
    "intermediate_size": ("intermediate_size", "intermediate_size", 4096),
    "num_hidden_layers": ("num_hidden_layers", "layers", 24),
    "num_attention_heads": ("num_attention_heads", "heads", 16),
    "norm_type": ("norm_type", "norm_type", "layer_norm"),
    "layer_norm_eps": ("layer_norm_eps", "norm_eps", 1e-6),
    "attention_dropout": ("attention_dropout", "attention_dropout", 0.0),
    "initializer_range": ("initializer_range", "initializer_range", 0.02),
    "qkv_bias": ("attention_bias", "qkv_bias", False),
    "qk_normalization": ("use_qk_norm", "qk_norm", False),
    "initializer_factor": ("layer_scale_init_value", "layer_scale", 0.1),
}
"""The encoder's fields: official name -> native name, ours, and what its absence means in a native config."""
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "num_key_value_heads": 32},
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "phi3": {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
}
"""What an absent field of a text config means, where the backbones differ."""

_VISION_KEYS = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "embeddings.patch_embedding.": "embeddings.patch_embeddings.projection.",
    "encoder.layers.": "encoder.layer.",
    ".ls1": ".lambda_1",
    ".ls2": ".lambda_2",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.q_norm.": ".attention.q_norm.",
    ".attn.k_norm.": ".attention.k_norm.",
}
"""Ours -> native inside the encoder; the fused ``attn.qkv`` is cut into three beside this table."""
_PROJECTOR_KEYS = {"mlp1.0.": "layer_norm.", "mlp1.1.": "linear_1.", "mlp1.3.": "linear_2."}


def matches(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this layout."""
    return raw.get("model_type") == "internvl"


def to_official_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A native config.json as an official ``internvl_chat`` one.

    Fields that the layout cannot hold come from the ``mini_internvl`` key, else from the text model's type.

    Raises:
        ConfigError: the model uses something that this family does not (another text model, an encoder with a last
            norm, a kept class token, ...); the message names the field.
    """
    fields = Fields(raw)
    text, vision = fields.table("text_config"), fields.table("vision_config")
    if text is None or vision is None:
        raise ConfigError("text_config or vision_config is missing; save the model again with transformers")
    _check_readable(fields, text, vision)
    kind = text.text("model_type", "qwen2", known=tuple(_TEXT), quiet=True)
    kept = copy.deepcopy(dict(stored.raw)) if (stored := fields.table(EXTRA)) else {}
    kept_vision, kept_llm = (kept.pop(name, None) or {} for name in ("vision_config", "llm_config"))
    image_size = _side(vision, "image_size", 448)
    token = fields.integer("image_token_id", QWEN2_5_IMAGE_TOKEN, low=0, high=10_000_000)
    llm = _official_llm(kind, text, Fields(kept_llm, f"{EXTRA}.llm_config").raw)
    modern = kind == "qwen2" and (token == QWEN2_5_IMAGE_TOKEN or llm["vocab_size"] > 151660)
    official = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "template": "internvl2_5" if modern else _TEMPLATES[kind],
        "ps_version": "v2",
        "force_image_size": image_size,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        **kept,
        "downsample_ratio": _given(raw, "downsample_ratio", 0.5),
        "select_layer": _given(raw, "vision_feature_layer", -1),
        "img_context_token_id": token,
        "tie_word_embeddings": False,
    }
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    if dtype:
        official["torch_dtype"] = dtype
    tied = fields.flag("tie_word_embeddings", True, quiet=True)
    if tied or text.flag("tie_word_embeddings", False, quiet=True):
        official[TIED] = True
    official["vision_config"] = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        **Fields(kept_vision, f"{EXTRA}.vision_config").raw,
        **{key: _given(vision.raw, name, default) for key, (name, _, default) in _VISION.items()},
        "qkv_bias": vision.flag("attention_bias", False),
        "qk_normalization": vision.flag("use_qk_norm", False),
        "initializer_factor": vision.number("layer_scale_init_value", 0.1, low=-1e6, high=1e6),
        "hidden_act": _given(vision.raw, "hidden_act", "gelu"),
        "dropout": _given(vision.raw, "projection_dropout", 0.0),
        "image_size": image_size,
        "patch_size": _side(vision, "patch_size", 14),
    }
    official["llm_config"] = llm
    return official


def from_official_config(official: Mapping[str, Any], image_token_id: int | None, dtype: str) -> dict[str, Any]:
    """An official ``internvl_chat`` config as the native config.json of current transformers.

    Args:
        official: config.json of an ``InternVLChatModel``.
        image_token_id: id of <IMG_CONTEXT>.
        dtype: type of the weights, for instance "bfloat16".

    Raises:
        ConfigError: the model has what the native code does not compute; the message says what.
    """
    config = VLMConfig.from_official(official)
    if image_token_id is None:
        raise ConfigError("the id of <IMG_CONTEXT> is not known, and the native layout needs it; give image_token_id")
    _check_writable(config)
    kept = {key: value for key, value in official.items() if key != TIED}
    vision = official["vision_config"]
    side, patch = config.vision.image_size, config.vision.patch_size
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "dtype": dtype,
        "torch_dtype": dtype,
        "image_token_id": image_token_id,
        "image_seq_length": config.tokens_per_tile,
        "downsample_ratio": config.downsample_ratio,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.select_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": {**_native_text(official["llm_config"], config), "dtype": dtype, "torch_dtype": dtype},
        "vision_config": {
            "architectures": ["InternVLVisionModel"],
            "model_type": "internvl_vision",
            **{name: getattr(config.vision, field) for name, field, _ in _VISION.values()},
            "num_channels": 3,
            "image_size": [side, side],
            "patch_size": [patch, patch],
            "hidden_act": "gelu",
            "projection_dropout": vision.get("dropout", 0.0),
            "hidden_dropout_prob": 0.0,
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "dtype": dtype,
            "torch_dtype": dtype,
        },
        EXTRA: copy.deepcopy(kept),
    }


def read(tensors: Iterable[tuple[str, Tensor]], config: VLMConfig) -> Iterator[tuple[str, Tensor]]:
    """Native tensors, of either spelling, under the names of ``InternVL.state_dict()``.

    The encoder's q, k and v are held back until all three are there. Parts of an incomplete triple come last under
    their native names, so that the caller lists them; so do tensors of unknown name.

    Args:
        tensors: (native name, tensor) in any order.
        config: read from this folder's config.json.

    Yields:
        (our name, tensor), every value as it was.
    """
    waiting: dict[str, dict[str, tuple[str, Tensor]]] = {}
    backbone = llms.find(config.llm.architecture)
    table, head = None, False
    for key, tensor in tensors:
        name = one_spelling(key)
        place = name.find(".attention.")
        part = name[place + len(".attention.") :]
        if name.startswith("vision_tower.") and place >= 0 and part[:7] in ("q_proj.", "k_proj.", "v_proj."):
            fused = _our_vision_key(name[:place]) + ".attn.qkv." + part[7:]
            parts = waiting.setdefault(fused, {})
            parts[part[0]] = (key, tensor)
            if len(parts) == 3:
                yield fused, _cat([parts[letter][1] for letter in "qkv"])
                del waiting[fused]
        elif name.startswith("vision_tower."):
            yield _our_vision_key(name), tensor
        elif name.startswith("multi_modal_projector."):
            yield _renamed(name.removeprefix("multi_modal_projector."), _back(_PROJECTOR_KEYS), key), tensor
        elif name.startswith("language_model."):
            inner = name.removeprefix("language_model.")
            parts_of = [(inner, tensor)] if config.llm.architecture == _TEXT["llama"] else None
            for ours, value in parts_of or backbone.split(inner, tensor, config.llm):
                ours = ours.removeprefix("model.")
                table = value if ours == "embed_tokens.weight" else table
                head = head or ours == "lm_head.weight"
                yield f"language_model.{ours}", value
        else:
            yield key, tensor
    if table is not None and not head and config.official.get(TIED):
        yield "language_model.lm_head.weight", table.clone()  # a parameter of its own: it may train apart
    for parts in waiting.values():
        yield from parts.values()


def write(state: Mapping[str, Tensor], config: VLMConfig) -> Iterator[tuple[str, Tensor]]:
    """The tensors of ``InternVL.state_dict()`` under their native names; the fused q, k, v is cut in three.

    Args:
        state: our tensors.
        config: of the model.

    Yields:
        (native name, tensor), every value as it was. Cut tensors share memory with the whole.
    """
    llm: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith("language_model."):
            llm[key.removeprefix("language_model.")] = tensor
        elif ".attn.qkv." in key:
            block, kind = _native_vision_key(key).split(".attn.qkv.")
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{block}.attention.{letter}_proj.{kind}", part
        elif key.startswith("vision_model."):
            yield _native_vision_key(key), tensor
        else:
            yield f"multi_modal_projector.{_renamed(key, _PROJECTOR_KEYS, key)}", tensor
    if config.llm.architecture == _TEXT["llama"]:
        joined: Iterable[tuple[str, Tensor]] = (
            (name if name.startswith("lm_head") else f"model.{name}", tensor) for name, tensor in llm.items()
        )
    else:
        joined = llms.find(config.llm.architecture).join(llm, config.llm)
    for name, tensor in joined:
        yield f"language_model.{name}", tensor


def _check_readable(fields: Fields, text: Fields, vision: Fields) -> None:
    wanted = (
        (fields, "vision_feature_select_strategy", "default"),
        (fields, "projector_hidden_act", "gelu"),
        (vision, "use_absolute_position_embeddings", True),
        (vision, "use_mean_pooling", True),
        (vision, "use_mask_token", False),
        (text, "attention_bias", False),
        (text, "mlp_bias", False),
    )
    for where, name, value in wanted:
        if where.has(name) and where.raw[name] != value:
            raise ConfigError(f"{where.path(name)} is {where.raw[name]!r}; this family only has {value!r}")
    if fields.has("vision_feature_layer") and not is_integer(fields.raw["vision_feature_layer"]):
        raise ConfigError(f"vision_feature_layer is {fields.raw['vision_feature_layer']!r}; this family uses one layer")


def _check_writable(config: VLMConfig) -> None:
    if config.ps_version != "v2":
        raise ConfigError(
            f'ps_version is "{config.ps_version}": the native layout puts the token grid\'s axes back in order (v2) '
            "and no change of weights can transpose the tokens; keep this checkpoint in the official layout"
        )
    inverse = 1 / config.downsample_ratio
    if inverse != int(inverse):
        raise ConfigError(f"downsample_ratio {config.downsample_ratio} is not one over a whole number; native needs it")
    if config.vision.qk_norm and config.vision.norm_eps != 1e-6:
        raise ConfigError(
            f"layer_norm_eps is {config.vision.norm_eps}; native norms queries and keys with 1e-06 always"
        )
    if config.llm.architecture == _TEXT["phi3"] and config.llm.rope.kind not in ("default", "longrope"):
        raise ConfigError(f'rope_scaling is "{config.llm.rope.kind}"; native Phi-3 has default and longrope only')
    if config.llm.architecture not in _TEXT.values():
        raise ConfigError(f'"{config.llm.architecture}" has no native text model; known: {", ".join(_TEXT.values())}')


def _official_llm(kind: str, text: Fields, kept: Mapping[str, Any]) -> dict[str, Any]:
    """text_config -> llm_config; ``kept`` gives the fields that text_config does not have."""
    defaults = _TEXT_DEFAULTS[kind]
    given = {key: value for key, value in text.raw.items() if value is not None}
    same = {**defaults, **{key: given[key] for key in _SAME_TEXT if key in given}}
    official = {
        **kept,
        **same,
        "architectures": [_TEXT[kind]],
        "model_type": _OFFICIAL_TYPES[kind],
        "tie_word_embeddings": False,
    }
    for name in ("rope_scaling", "rope_parameters") if kind == "phi3" else ():
        if isinstance(given.get(name), Mapping):  # older releases of transformers know longrope by two more names
            given[name] = {key: "longrope" if value in ("su", "yarn") else value for key, value in given[name].items()}
    checked = llms.base_config(
        Fields({**defaults, **given}, text.where),
        architecture=_TEXT[kind],
        norm_eps=defaults["rms_norm_eps"],
        max_positions=defaults["max_position_embeddings"],
    )
    rope = checked.rope
    if rope.kind == "longrope":
        official["original_max_position_embeddings"] = rope.original_max_positions
    if kept and _same_rope(official, checked):  # keep the spelling that was there
        return official
    official.pop("rope_parameters", None)
    scaling: dict[str, Any] | None = None
    if rope.kind == "longrope":  # the official Phi-3 code knows it as "su"
        scaling = {"type": "su", "short_factor": list(rope.short_factor), "long_factor": list(rope.long_factor)}
    elif rope.kind != "default":
        scaling = {"type": rope.kind, "factor": rope.factor}
    return {**official, "rope_theta": rope.theta, "rope_scaling": scaling}


def _same_rope(official: Mapping[str, Any], checked: DecoderConfig) -> bool:
    fields = Fields(official, "llm_config")
    try:
        read = llms.read_rope(fields, head_dim=checked.head_dim, max_positions=checked.rope.max_positions)
    except ConfigError:
        return False
    return read == checked.rope and not any("rope_theta" in default for default in fields.taken)


def _native_text(llm: Mapping[str, Any], config: VLMConfig) -> dict[str, Any]:
    """llm_config -> text_config, rotary settings in the older spelling, which old and current releases read."""
    kind = next(name for name, architecture in _TEXT.items() if architecture == config.llm.architecture)
    rope, ours = config.llm.rope, config.llm
    text = {key: llm[key] for key in _SAME_TEXT if key in llm}
    text |= {
        "architectures": [_TEXT_CLASSES[kind]],
        "model_type": kind,
        "num_key_value_heads": ours.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": ours.norm_eps,
        "max_position_embeddings": rope.max_positions,
        "initializer_range": ours.initializer_range,
        "rope_theta": rope.theta,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    }
    if kind == "llama":
        text |= {"attention_bias": False, "mlp_bias": False, "head_dim": ours.head_dim}
    if rope.kind == "longrope":
        text["original_max_position_embeddings"] = rope.original_max_positions
        factors = {"short_factor": list(rope.short_factor), "long_factor": list(rope.long_factor)}
        text["rope_scaling"] = {"type": "longrope", **factors}  # older releases refuse a fourth key
    elif rope.kind != "default":
        text["rope_scaling"] = {"type": rope.kind, "rope_type": rope.kind, "factor": rope.factor}
    return text


def _side(vision: Fields, name: str, default: int) -> int:
    """A square given as one number or as two."""
    value = _given(vision.raw, name, default)
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if not sides or any(side != sides[0] for side in sides) or not is_integer(sides[0]):
        raise ConfigError(f"{vision.path(name)} is {value!r:.60}; this family has squares")
    return int(sides[0])


def _given(raw: Mapping[str, Any], name: str, default: Any) -> Any:
    value = raw.get(name)
    return default if value is None else value


def one_spelling(key: str) -> str:
    """``model.language_model.*`` and top-level ``lm_head`` in the other spelling."""
    if key.startswith("lm_head."):
        return f"language_model.{key}"
    if key.startswith("model.language_model."):
        return "language_model.model." + key.removeprefix("model.language_model.")
    return key.removeprefix("model.")


def _our_vision_key(name: str) -> str:
    return "vision_model." + _replaced(name.removeprefix("vision_tower."), _back(_VISION_KEYS))


def _native_vision_key(key: str) -> str:
    return "vision_tower." + _replaced(key.removeprefix("vision_model."), _VISION_KEYS)


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def _renamed(name: str, table: Mapping[str, str], unknown: str) -> str:
    """``name`` with its beginning renamed, or ``unknown``."""
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return unknown


def _back(table: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in table.items()}


def _cat(parts: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(parts)
