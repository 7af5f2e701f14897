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
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mini_internvl.model import llms
from mini_internvl.model.config import ConfigError, RopeConfig, VLMConfig

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
    text, vision = raw.get("text_config"), raw.get("vision_config")
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise ConfigError("text_config or vision_config is missing; save the model again with transformers")
    _check_readable(raw, text, vision)
    kind = text.get("model_type", "qwen2")
    stored = raw.get(EXTRA)
    kept: dict[str, Any] = copy.deepcopy(dict(stored)) if isinstance(stored, Mapping) else {}
    kept_vision, kept_llm = kept.pop("vision_config", None) or {}, kept.pop("llm_config", None) or {}
    image_size = _side(vision.get("image_size", 448), "vision_config.image_size")
    token = raw.get("image_token_id", QWEN2_5_IMAGE_TOKEN)
    modern = kind == "qwen2" and (token == QWEN2_5_IMAGE_TOKEN or text.get("vocab_size", 0) > 151660)
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
        "downsample_ratio": raw.get("downsample_ratio", 0.5),
        "select_layer": raw.get("vision_feature_layer", -1),
        "img_context_token_id": token,
        "tie_word_embeddings": False,
    }
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    if dtype:
        official["torch_dtype"] = dtype
    if raw.get("tie_word_embeddings", True) or text.get("tie_word_embeddings", False):
        official[TIED] = True
    official["vision_config"] = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        **kept_vision,
        **{key: vision.get(name, default) for key, (name, _, default) in _VISION.items()},
        "hidden_act": vision.get("hidden_act", "gelu"),
        "dropout": vision.get("projection_dropout", 0.0),
        "image_size": image_size,
        "patch_size": _side(vision.get("patch_size", 14), "vision_config.patch_size"),
    }
    official["llm_config"] = _official_llm(kind, text, kept_llm)
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
        name = _one_spelling(key)
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


def _check_readable(raw: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    kind = text.get("model_type", "qwen2")
    if kind not in _TEXT:
        raise ConfigError(f'text_config.model_type is "{kind}"; known: {", ".join(_TEXT)}')
    wanted = (
        (raw, "", "vision_feature_select_strategy", "default"),
        (raw, "", "projector_hidden_act", "gelu"),
        (vision, "vision_config.", "use_absolute_position_embeddings", True),
        (vision, "vision_config.", "use_mean_pooling", True),
        (vision, "vision_config.", "use_mask_token", False),
        (text, "text_config.", "attention_bias", False),
        (text, "text_config.", "mlp_bias", False),
        (text, "text_config.", "partial_rotary_factor", 1.0),
        (text.get("rope_parameters") or {}, "text_config.rope_parameters.", "partial_rotary_factor", 1.0),
    )
    for where, prefix, name, value in wanted:
        given = where.get(name)
        if given is not None and given != value:
            raise ConfigError(f"{prefix}{name} is {given!r}; this family only has {value!r}")
    if not isinstance(raw.get("vision_feature_layer", -1), int):
        raise ConfigError(f"vision_feature_layer is {raw['vision_feature_layer']!r}; this family uses one layer")


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


def _official_llm(kind: str, text: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """text_config -> llm_config; ``kept`` gives the fields that text_config does not have."""
    same = {**_TEXT_DEFAULTS[kind], **{key: text[key] for key in _SAME_TEXT if key in text}}
    if same.get("num_key_value_heads") is None:
        same.pop("num_key_value_heads", None)
    official = {
        **kept,
        **same,
        "architectures": [_TEXT[kind]],
        "model_type": _OFFICIAL_TYPES[kind],
        "tie_word_embeddings": False,
    }
    rope = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    theta = rope.pop("rope_theta", None)
    theta = theta if theta is not None else text.get("rope_theta", 10000.0)
    name = rope.get("rope_type") or rope.get("type") or "default"
    scaling: dict[str, Any] | None = None
    if name in ("su", "yarn", "longrope"):  # the official Phi-3 code knows it as "su"
        factors = {key: rope.get(key) or () for key in ("short_factor", "long_factor")}
        scaling = {"type": "su", **factors}
        if "original_max_position_embeddings" not in text and "original_max_position_embeddings" in rope:
            official["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    elif name != "default":
        scaling = {"type": name, "factor": rope.get("factor", 1.0)}
    read_back = llms.read_rope({**official, "rope_theta": theta, "rope_scaling": scaling})
    _check_rope_factors(rope, read_back)
    if kept and _same_rope(official, read_back):  # keep the spelling that was there
        return official
    return {**official, "rope_theta": theta, "rope_scaling": scaling}


def _same_rope(official: Mapping[str, Any], rope: RopeConfig) -> bool:
    try:
        return "rope_theta" in official and llms.read_rope(official) == rope
    except ConfigError:
        return False


def _check_rope_factors(given: Mapping[str, Any], rope: RopeConfig) -> None:
    """longrope: a written ``factor`` or ``attention_factor`` must be the one that follows from the lengths."""
    if rope.kind != "longrope":
        return
    ratio = rope.max_positions / rope.original_max_positions
    scale = math.sqrt(1 + math.log(ratio) / math.log(rope.original_max_positions)) if ratio > 1 else 1.0
    for name, value in (("factor", ratio), ("attention_factor", scale)):
        if given.get(name) is not None and not math.isclose(given[name], value, rel_tol=1e-6):
            raise ConfigError(f"text_config.rope_parameters.{name} is {given[name]}; this family has {value}")


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


def _side(value: object, name: str) -> int:
    """A square given as one number or as two."""
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if not sides or len(set(sides)) != 1 or not isinstance(sides[0], int):
        raise ConfigError(f"{name} is {value!r}; this family has squares")
    return sides[0]


def _one_spelling(key: str) -> str:
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
