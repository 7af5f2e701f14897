"""Qwen2: the decoder of the 1B (Qwen2-0.5B-Instruct) and of nano. Biases on queries, keys and values only.

Its official tensor names are ours, so nothing is cut or glued. The embedding table and the output matrix are separate
tensors in this family although the base model ties them.
"""

from __future__ import annotations

from typing import Any

from mini_internvl.model.config import DecoderConfig
from mini_internvl.model.fields import Fields
from mini_internvl.model.llms import Names

ARCHITECTURE = "Qwen2ForCausalLM"
TEMPLATE = "Hermes-2"
SIZES: dict[str, dict[str, Any]] = {
    "1B": {
        "model_type": "qwen2",
        "vocab_size": 151655,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "use_sliding_window": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
}
NAMES = Names()


def read_config(fields: Fields) -> DecoderConfig:
    window = fields.integer("sliding_window", None, high=10**9, quiet=True)
    return DecoderConfig.from_official(
        fields,
        architecture=ARCHITECTURE,
        norm_eps=1e-6,
        max_positions=32768,
        qkv_bias=True,
        sliding_window=window if fields.flag("use_sliding_window", False, quiet=True) else None,
    )
