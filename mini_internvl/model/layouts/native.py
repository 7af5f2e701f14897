"""The layout of Hugging Face transformers: ``InternVLForConditionalGeneration``, model type "internvl".

Its text model is transformers' own Qwen2, Qwen3, Llama (for InternLM2) or Phi-3. Two spellings of tensor names are
read: ``language_model.model.*`` with ``vision_tower.*``, which every release writes to disk and which is written here,
and ``model.language_model.*`` with ``model.vision_tower.*``, the names in memory.

Unusual: what the layout has no field for (template, tile limits, drop path, ...) is kept in config.json under
``mini_internvl``, a key that transformers ignores and writes back. A value that the layout does have a field for always
comes from that field, so a checkpoint edited or trained elsewhere is read as it is now.
Source: ``configuration_internvl.py``, ``modeling_internvl.py``, ``convert_internvl_weights_to_hf.py`` of transformers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mini_internvl.model import llms
from mini_internvl.model.config import ConfigError, DecoderConfig, RopeConfig, VLMConfig
from mini_internvl.model.fields import Fields, is_integer
from mini_internvl.model.layouts.official import LLM, join_llm, split_llm

NAME = "native"
EXTRA = "mini_internvl"  # key of a native config.json that holds the official one
TIED = "native_tied_embeddings"
"""Key of an official config made here: the native one ties ``lm_head`` to the embedding table."""
QWEN2_5_IMAGE_TOKEN = 151667  # id of <IMG_CONTEXT> in every Qwen2.5 based member; the 2.0 family ends before it

_TEXT = {
    "qwen2": ("Qwen2ForCausalLM", "Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3ForCausalLM", "qwen3"),
    "llama": ("LlamaForCausalLM", "InternLM2ForCausalLM", "internlm2"),
    "phi3": ("Phi3ForCausalLM", "Phi3ForCausalLM", "phi3"),
}
"""Native type of the text model -> its native class, the official class and the official type."""
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
_KEYS = {
    "vision_model.": "vision_tower.",
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
    "mlp1.0.": "multi_modal_projector.layer_norm.",
    "mlp1.1.": "multi_modal_projector.linear_1.",
    "mlp1.3.": "multi_modal_projector.linear_2.",
}
"""Ours -> native in encoder and projector; the fused ``attn.qkv`` is cut into three beside this table."""
_QKV = re.compile(r"(vision_model\..+)\.attention\.([qkv])_proj\.(.+)")


def matches(raw: Mapping[str, Any]) -> bool:
    return raw.get("model_type") == "internvl"


def to_official_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A native config as an official one.

    Fields that the layout cannot hold come from the ``mini_internvl`` key, else from the text model's type. ConfigError
    names a field that this family does not have: another text model, a last norm of the encoder, a kept class token...
    """
    fields = Fields(raw)
    text, vision = fields.table("text_config"), fields.table("vision_config")
    if text is None or vision is None:
        raise ConfigError("text_config or vision_config is missing; save the model again with transformers")
    _check_readable(fields, text, vision)
    kind = text.text("model_type", "qwen2", known=tuple(_TEXT), quiet=True)
    kept = copy.deepcopy(dict(stored.raw)) if (stored := fields.table(EXTRA)) else {}
    kept_vision, kept_llm = (
        Fields(kept.pop(name, None) or {}, f"{EXTRA}.{name}").raw for name in ("vision_config", "llm_config")
    )
    encoder = _official_vision(vision, kept_vision)
    token = fields.integer("image_token_id", QWEN2_5_IMAGE_TOKEN, low=0, high=10_000_000)
    llm = _official_llm(kind, text, kept_llm)
    modern = kind == "qwen2" and (token == QWEN2_5_IMAGE_TOKEN or llm["vocab_size"] > 151660)
    whole = _present(raw)
    official = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "template": "internvl2_5" if modern else llms.find(_TEXT[kind][1]).TEMPLATE,
        "ps_version": "v2",
        "force_image_size": encoder["image_size"],
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        **kept,
        "downsample_ratio": whole.get("downsample_ratio", 0.5),
        "select_layer": whole.get("vision_feature_layer", -1),
        "img_context_token_id": token,
        "tie_word_embeddings": False,
        "vision_config": encoder,
        "llm_config": llm,
    }
    if dtype := raw.get("dtype") or raw.get("torch_dtype"):
        official["torch_dtype"] = dtype
    tied = fields.flag("tie_word_embeddings", True, quiet=True)
    if tied or text.flag("tie_word_embeddings", False, quiet=True):
        official[TIED] = True
    return official


def _official_vision(vision: Fields, kept: Mapping[str, Any]) -> dict[str, Any]:
    given = _present(vision.raw)
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        **kept,
        **{key: given.get(name, default) for key, (name, _, default) in _VISION.items()},
        "qkv_bias": vision.flag("attention_bias", False),
        "qk_normalization": vision.flag("use_qk_norm", False),
        "initializer_factor": vision.number("layer_scale_init_value", 0.1, low=-1e6, high=1e6),
        "hidden_act": given.get("hidden_act", "gelu"),
        "dropout": given.get("projection_dropout", 0.0),
        "image_size": _side(vision, "image_size", 448),
        "patch_size": _side(vision, "patch_size", 14),
    }


def from_official_config(official: Mapping[str, Any], image_token_id: int | None, dtype: str) -> dict[str, Any]:
    """An official config as a native one; ConfigError says what the model has that the native code does not compute."""
    config = VLMConfig.from_official(official)
    if image_token_id is None:
        raise ConfigError("the id of <IMG_CONTEXT> is not known, and the native layout needs it; give image_token_id")
    _check_writable(config)
    kept = {key: value for key, value in official.items() if key != TIED}
    types = {"dtype": dtype, "torch_dtype": dtype}
    side, patch = config.vision.image_size, config.vision.patch_size
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        **types,
        "image_token_id": image_token_id,
        "image_seq_length": config.tokens_per_tile,
        "downsample_ratio": config.downsample_ratio,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.select_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": {**_native_text(official["llm_config"], config), **types},
        "vision_config": {
            "architectures": ["InternVLVisionModel"],
            "model_type": "internvl_vision",
            **{name: getattr(config.vision, field) for name, field, _ in _VISION.values()},
            "num_channels": 3,
            "image_size": [side, side],
            "patch_size": [patch, patch],
            "hidden_act": "gelu",
            "projection_dropout": official["vision_config"].get("dropout", 0.0),
            "hidden_dropout_prob": 0.0,
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            **types,
        },
        EXTRA: copy.deepcopy(kept),
    }


def read(tensors: Iterable[tuple[str, Tensor]], config: VLMConfig) -> Iterator[tuple[str, Tensor]]:
    """Native tensors, of either spelling, under our names.

    The encoder's q, k and v are held back until all three are there; an incomplete triple comes last, as it is.
    """
    return split_llm(_renamed(tensors), config, text_names(config), tied=bool(config.official.get(TIED)))


def _renamed(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Encoder and projector under our names, the language model's tensors in one spelling."""
    waiting: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for key, tensor in tensors:
        name = _our_name(key)
        if not (cut := _QKV.fullmatch(name)):
            yield name, tensor
            continue
        fused = f"{cut[1]}.attn.qkv.{cut[3]}"
        parts = waiting.setdefault(fused, {})
        parts[cut[2]] = (key, tensor)
        if len(parts) == 3:
            yield fused, torch.cat([parts[letter][1] for letter in "qkv"])
            del waiting[fused]
    for parts in waiting.values():
        yield from parts.values()


def write(state: Mapping[str, Tensor], config: VLMConfig) -> Iterator[tuple[str, Tensor]]:
    """Our tensors under native names; the encoder's q, k and v share memory with the whole that they are cut from."""
    native: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key if key.startswith(LLM) else _replaced(key, _KEYS)
        block, cut, kind = name.partition(".attn.qkv.")
        if cut:
            names = [f"{block}.attention.{letter}_proj.{kind}" for letter in "qkv"]
            native |= zip(names, tensor.chunk(3), strict=True)
        else:
            native[name] = tensor
    return join_llm(native, config, text_names(config))


def text_names(config: VLMConfig) -> llms.Names:
    """Names in the text model: Llama, which stands for InternLM2, has ours."""
    name = config.llm.architecture
    return llms.Names() if name == "InternLM2ForCausalLM" else llms.find(name).NAMES


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
    if config.flash:
        raise ConfigError("this is a Flash model, whose router transformers does not have; keep the official layout")
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
    if config.llm.architecture == "Phi3ForCausalLM" and config.llm.rope.kind not in ("default", "longrope"):
        raise ConfigError(f'rope_scaling is "{config.llm.rope.kind}"; native Phi-3 has default and longrope only')
    known = [official for _, official, _ in _TEXT.values()]
    if config.llm.architecture not in known:
        raise ConfigError(f'"{config.llm.architecture}" has no native text model; known: {", ".join(known)}')


def _official_llm(kind: str, text: Fields, kept: Mapping[str, Any]) -> dict[str, Any]:
    """text_config -> llm_config; ``kept`` gives the fields that text_config does not have."""
    _, architecture, model_type = _TEXT[kind]
    given = _present(text.raw)
    if kind == "qwen2":
        given.setdefault("num_key_value_heads", 32)
    for name in ("rope_scaling", "rope_parameters") if kind == "phi3" else ():
        if isinstance(given.get(name), Mapping):  # older releases of transformers know longrope by two more names
            given[name] = {key: "longrope" if value in ("su", "yarn") else value for key, value in given[name].items()}
    checked: DecoderConfig = llms.find(architecture).read_config(Fields(given, text.where))
    official = {
        **kept,
        "rms_norm_eps": checked.norm_eps,
        "max_position_embeddings": checked.rope.max_positions,
        **{key: given[key] for key in _SAME_TEXT if key in given},
        "architectures": [architecture],
        "model_type": model_type,
        "tie_word_embeddings": False,
    }
    rope = checked.rope
    if rope.kind == "longrope":
        official["original_max_position_embeddings"] = rope.original_max_positions
    if kept and _same_rope(official, checked):  # keep the spelling that was there
        return official
    official.pop("rope_parameters", None)
    # the official Phi-3 code knows longrope as "su"
    return {**official, "rope_theta": rope.theta, "rope_scaling": _rope_scaling(rope, longrope="su")}


def _rope_scaling(rope: RopeConfig, *, longrope: str) -> dict[str, Any] | None:
    if rope.kind == "longrope":  # older releases of transformers refuse a fourth key
        return {"type": longrope, "short_factor": list(rope.short_factor), "long_factor": list(rope.long_factor)}
    return None if rope.kind == "default" else {"type": rope.kind, "factor": rope.factor}


def _same_rope(official: Mapping[str, Any], checked: DecoderConfig) -> bool:
    fields = Fields(official, "llm_config")
    try:
        read = RopeConfig.from_official(fields, head_dim=checked.head_dim, max_positions=checked.rope.max_positions)
    except ConfigError:
        return False
    return read == checked.rope and not any("rope_theta" in default for default in fields.taken)


def _native_text(llm: Mapping[str, Any], config: VLMConfig) -> dict[str, Any]:
    """llm_config -> text_config, rotary settings in the older spelling, which old and current releases read."""
    kind = next(name for name, (_, official, _) in _TEXT.items() if official == config.llm.architecture)
    rope, ours = config.llm.rope, config.llm
    text = {key: llm[key] for key in _SAME_TEXT if key in llm}
    text |= {
        "architectures": [_TEXT[kind][0]],
        "model_type": kind,
        "num_key_value_heads": ours.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": ours.norm_eps,
        "max_position_embeddings": rope.max_positions,
        "initializer_range": ours.initializer_range,
        "rope_theta": rope.theta,
        "rope_scaling": _rope_scaling(rope, longrope="longrope"),
        "tie_word_embeddings": False,
    }
    if kind in ("llama", "qwen3"):
        text |= {"attention_bias": False, "head_dim": ours.head_dim}
    if kind == "llama":
        text["mlp_bias"] = False
    if rope.kind == "longrope":
        text["original_max_position_embeddings"] = rope.original_max_positions
    elif text["rope_scaling"]:
        text["rope_scaling"]["rope_type"] = rope.kind
    return text


def _side(vision: Fields, name: str, default: int) -> int:
    """A square given as one number or as two."""
    value = _present(vision.raw).get(name, default)
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if not sides or any(side != sides[0] for side in sides) or not is_integer(sides[0]):
        raise ConfigError(f"{vision.path(name)} is {value!r:.60}; this family has squares")
    return int(sides[0])


def _present(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if value is not None}


def one_spelling(key: str) -> str:
    """``model.language_model.*`` and top-level ``lm_head`` in the other spelling."""
    name = f"{LLM}{key}" if key.startswith("lm_head.") else key
    return re.sub(r"^model\.language_model\.", "language_model.model.", name).removeprefix("model.")


def _our_name(key: str) -> str:
    """A native name of either spelling as ours, the fused parts of the encoder apart; others stay."""
    name = one_spelling(key)
    if name.startswith(LLM):
        return name
    ours = _replaced(name, {native: ours for ours, native in _KEYS.items()})
    return key if ours == name else ours


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name
