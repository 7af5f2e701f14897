"""Phi-3: the decoder of the 4B (Phi-3-mini-128k-instruct). Fused qkv and gate-up rows, LongRoPE, no biases.

The LongRoPE factor lists differ between releases of the base model: they are read from config.json, never assumed,
which is why ``SIZES`` carries none. Source: ``internvl/model/phi3/modeling_phi3.py``.
"""

from __future__ import annotations

from typing import Any

from mini_internvl.model.config import DecoderConfig
from mini_internvl.model.fields import Fields
from mini_internvl.model.llms import TINY, Gguf, Names

ARCHITECTURE = "Phi3ForCausalLM"
TEMPLATE = "phi3-chat"
TOKENIZER = ("tokenizer.model",)
IMAGE_TOKEN = None
SIZES: dict[str, dict[str, Any]] = {
    "4B": {
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
        "sliding_window": 262144,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
}
EXAMPLE = {
    **TINY,
    "architectures": [ARCHITECTURE],
    "original_max_position_embeddings": 32,
    "sliding_window": 12,
    "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]},
}
NAMES = Names(
    fused={
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    }
)
GGUF = Gguf(architecture="phi3", fused=True, longrope=True)


def read_config(fields: Fields) -> DecoderConfig:
    window = fields.integer("sliding_window", None, high=10**9, quiet=True)
    return DecoderConfig.from_official(
        fields, architecture=ARCHITECTURE, norm_eps=1e-5, max_positions=4096, sliding_window=window
    )
