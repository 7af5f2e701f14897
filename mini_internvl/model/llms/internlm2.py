"""InternLM2: the decoder of the 2B. Fused query-key-value rows, dynamic NTK rotary, no biases.

InternVL2 has internlm2-chat-1_8b, 2.5 has internlm2_5-1_8b-chat, whose shapes are the same.
Source: ``internvl/model/internlm2/modeling_internlm2.py``.
"""

from __future__ import annotations

from typing import Any

from mini_internvl.model.config import ConfigError, DecoderConfig
from mini_internvl.model.fields import Fields
from mini_internvl.model.llms import TINY, Gguf, Names

ARCHITECTURE = "InternLM2ForCausalLM"
TEMPLATE = "internlm2-chat"
TOKENIZER = ("tokenizer.model",)
IMAGE_TOKEN = None
_2B: dict[str, Any] = {
    "model_type": "internlm2",
    "vocab_size": 92553,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "rms_norm_eps": 1e-05,
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIZES: dict[str, dict[str, Any]] = {"2B": _2B, "2.5-2B": _2B}
EXAMPLE = {**TINY, "architectures": [ARCHITECTURE], "rope_scaling": {"type": "dynamic", "factor": 2.0}}
NAMES = Names(
    renamed={
        "tok_embeddings": "embed_tokens",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    },
    fused={"attention.wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
    by_kv_head=True,
    head="output",
)
GGUF = Gguf(architecture="internlm2", pairs=True)


def read_config(fields: Fields) -> DecoderConfig:
    """ConfigError when the checkpoint has attention biases, which no released member has."""
    if fields.flag("bias", False, quiet=True):
        raise ConfigError("llm_config.bias is true; InternLM2 with attention biases is not supported")
    return DecoderConfig.from_official(fields, architecture=ARCHITECTURE, norm_eps=1e-6, max_positions=2048)
