"""Tiny checkpoints of the later generations, with the fields of the released config.json files and the released ids.

Unusual: only sizes are shrunk. Vocabularies are whole, and what the released files hold beside what a model needs (null
fields, settings of experts that are off, a name of another model) stands here too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from mini_internvl.inputs.chat import FAMILY_TOKENS
from mini_internvl.model.checkpoint import save_model
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import fresh
from mini_internvl.model.vlm import InternVL

TOKENIZERS = Path(__file__).parent / "golden/data/tokenizers"
CONTEXT = {"2.5-1B": 151667, "2.5-2B": 92546, "3-1B": 151667, "3.5-1B": 151671, "3.5-1B-Flash": 151671}
"""Id of <IMG_CONTEXT>."""
FLASH = {"flash_mode": True, "flash_relative_threshold": 0.3, "flash_absolute_threshold": 0.4}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPECIAL += tuple(f"<|{what}_{end}|>" for what in ("object_ref", "box", "quad", "vision") for end in ("start", "end"))
SPECIAL += ("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
PLAIN = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
PLAIN += ("<|repo_name|>", "<|file_sep|>")
THINKING = ("<tool_response>", "</tool_response>", "<think>", "</think>")  # Qwen3's alone
VISION: dict[str, Any] = {
    "_name_or_path": "OpenGVLab/InternViT-6B-448px-V1-5",
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    **{"attention_dropout": 0.0, "drop_path_rate": 0.1, "dropout": 0.0, "hidden_act": "gelu", "num_channels": 3},
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 56, "patch_size": 14, "initializer_factor": 0.1, "initializer_range": 0.02},
    **{"layer_norm_eps": 1e-6, "norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True},
    **{"use_flash_attn": False, "use_bfloat16": True, "torch_dtype": "bfloat16"},
}
EXPERTS: dict[str, Any] = {
    **{"capacity_factor": 1.2, "eval_capacity_factor": 1.4, "laux_allreduce": "all_nodes", "moe_coeff_ratio": 0.5},
    **{"moe_intermediate_size": 768, "moe_output_scale": 4.0, "noisy_gate_policy": "RSample_before", "num_experts": 8},
    **{"num_routed_experts": 4, "num_shared_experts": 4, "shared_expert_intermediate_size": 3072, "use_moe": False},
    **{"use_residual": True, "use_rts": False, "use_weighted_residual": False},
}
LLM: dict[str, Any] = {
    **{"attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.2, "rms_norm_eps": 1e-6},
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_theta": 1000000.0, "use_cache": False},
    **{"torch_dtype": "bfloat16", "bos_token_id": 151643, "eos_token_id": 151645},
}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151674}
LLMS: dict[str, dict[str, Any]] = {
    "2.5-1B": {**LLM, **QWEN2, "sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 21},
    "2.5-2B": {
        **LLM,
        **{"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "vocab_size": 92553, "bias": False},
        **{"bos_token_id": 1, "eos_token_id": 2, "rope_scaling": {"factor": 2.0, "type": "dynamic"}},
    },
    "3-1B": {
        **LLM,
        **QWEN2,
        "_name_or_path": "./pretrained/Qwen2.5-32B-Instruct",
        "eos_token_id": 151643,
        "layer_types": ["full_attention"] * 2,
        "max_window_layers": 70,
        "moe_config": None,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        **{"sliding_window": None, "use_sliding_window": False, "use_bfloat16": True},
    },
    "3.5-1B": {
        **LLM,
        **{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "head_dim": 6},
        **{"attention_bias": False, "max_position_embeddings": 40960, "max_window_layers": 28, "rope_scaling": None},
        **{"sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": False},
    },
}


def config(kind: str) -> dict[str, Any]:
    """config.json of a generation, small; a Flash model's tiles have 16 tokens, or 4."""
    generation, flash = kind.removesuffix("-Flash"), kind.endswith("-Flash")
    raw = {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "model_type": "internvl_chat",
        **{"downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 56, "select_layer": -1},
        **{"max_dynamic_patch": 12, "min_dynamic_patch": 1, "ps_version": "v2", "template": "internvl2_5"},
        **{"use_thumbnail": True, "use_backbone_lora": 0, "use_llm_lora": 0, "torch_dtype": "bfloat16"},
        **{"transformers_version": None, "tie_word_embeddings": False},
        "llm_config": LLMS[generation],
        "vision_config": VISION,
    }
    if flash:
        raw |= {**FLASH, "force_image_size": 112}
        raw["vision_config"] = {**VISION, "hidden_size": 32, "image_size": 112}
    if generation != "3.5-1B":
        raw["pad2square"] = False
    if kind == "3-1B":
        raw |= {"image_fold": None, "system_message": None, "hidden_size": 16, "output_attentions": False}
        raw["vision_config"] = {**VISION, **EXPERTS}
    return json.loads(json.dumps(raw))


def write_tokenizer(kind: str, folder: Path) -> None:
    """Tokenizer files of a generation: Qwen2's vocabulary with the added tokens of Qwen2.5 or Qwen3, and the nine."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "2.5-2B":
        shutil.copytree(TOKENIZERS / "internlm2", folder, dirs_exist_ok=True)
        (folder / "generation_config.json").write_text('{"eos_token_id": [92542, 92543]}')
        return
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZERS / "qwen2" / name, folder / name)
    texts = [*SPECIAL, *PLAIN, *(THINKING if kind.startswith("3.5") else ()), *FAMILY_TOKENS]
    ids = {text: 151643 + place for place, text in enumerate(texts)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(number): {"content": text, **flags, "special": text not in PLAIN + THINKING} for text, number in ids.items()
    }
    settings = {
        "added_tokens_decoder": decoder,
        "additional_special_tokens": list(SPECIAL[1:]),
        "eos_token": "<|im_end|>",
        "model_max_length": 1000000,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "use_fast": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({name: settings[name] for name in ("additional_special_tokens", "eos_token", "pad_token")})
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [151644, 151645]}')


def _spread(model: InternVL) -> None:
    """A router whose probabilities lie on both sides of a threshold, and a second projector that says something."""
    for part in (model.gating, model.pooling_before_gating, model.mlp2):
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    model.gating.gate[1].bias.zero_()
    model.gating.gate[1].weight.mul_(0.2)  # far from 0 and 1, where float32 could not tell them apart


def write(kind: str, folder: Path) -> Path:
    """A whole checkpoint with random float32 weights, in the official layout; config.json is the released one's."""
    raw = config(kind)
    model = fresh(VLMConfig.from_official(raw), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms of one and biases of zero would hide one that is forgotten
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
        if model.config.flash:
            _spread(model)
    write_tokenizer(kind, folder.parent / f"{folder.name}-tokenizer")
    save_model(model, folder, extra_files=sorted((folder.parent / f"{folder.name}-tokenizer").iterdir()))
    (folder / "config.json").write_text(json.dumps({**raw, "torch_dtype": "float32"}))
    return folder
