"""Phi-3: the decoder of the 4B (Phi-3-mini-128k-instruct). Fused qkv and gate-up rows, LongRoPE, no biases.

``qkv_proj`` holds all query rows, then all key rows, then all value rows; ``gate_up_proj`` the gate half, then the up
half. The LongRoPE factor lists differ between releases of the base model: they are read from config.json, never
assumed, which is why ``SIZES`` carries none. Source: ``internvl/model/phi3/modeling_phi3.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mini_internvl.model.config import DecoderConfig
from mini_internvl.model.fields import Fields
from mini_internvl.model.llms import base_config

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURE = "Phi3ForCausalLM"
TEMPLATE = "phi3-chat"
SIZES: dict[str, dict[str, Any]] = {
    "4B": {
        "architectures": [ARCHITECTURE],
        "model_type": "phi3",
        "vocab_size": 32020,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-05,
        "hidden_act": "silu",
        "sliding_window": 262144,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "tie_word_embeddings": False,
    },
}
NATIVE_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def read_config(fields: Fields) -> DecoderConfig:
    """Official llm_config -> DecoderConfig."""
    window = fields.integer("sliding_window", None, high=10**9, quiet=True)
    return base_config(fields, architecture=ARCHITECTURE, norm_eps=1e-5, max_positions=4096, sliding_window=window)


def split(key: str, tensor: Tensor, config: DecoderConfig) -> Iterable[tuple[str, Tensor]]:
    """One official tensor -> ours; the fused matrices are cut by rows."""
    key = key.removeprefix("model.")
    if "qkv_proj" in key:
        kv_rows = config.kv_heads * config.head_dim
        q, k, v = tensor.split([config.heads * config.head_dim, kv_rows, kv_rows])
        for name, part in (("q_proj", q), ("k_proj", k), ("v_proj", v)):
            yield key.replace("qkv_proj", name), part
    elif "gate_up_proj" in key:
        gate, up = tensor.chunk(2)
        yield key.replace("gate_up_proj", "gate_proj"), gate
        yield key.replace("gate_up_proj", "up_proj"), up
    else:
        yield key, tensor


def join(state: Mapping[str, Tensor], config: DecoderConfig) -> Iterable[tuple[str, Tensor]]:
    """Our tensors under the official names, rows glued again."""
    import torch

    for key, tensor in state.items():
        if key == "lm_head.weight":
            yield key, tensor
        elif "q_proj" in key:
            parts = [state[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")]
            yield f"model.{key.replace('q_proj', 'qkv_proj')}", torch.cat(parts)
        elif "gate_proj" in key:
            parts = [tensor, state[key.replace("gate_proj", "up_proj")]]
            yield f"model.{key.replace('gate_proj', 'gate_up_proj')}", torch.cat(parts)
        elif not any(name in key for name in ("k_proj", "v_proj", "up_proj")):
            yield f"model.{key}", tensor
