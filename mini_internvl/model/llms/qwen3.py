"""Qwen3: the decoder of 3.5. Queries and keys are normalised head by head before they are rotated; there are no biases.

A head is 128 wide whatever ``hidden_size`` over heads is: the 4B's heads together are wider than its hidden states. The
vocabulary keeps the base model's spare rows behind the family's nine tokens. The official tensor names are ours.
Source: ``modeling_qwen3.py`` of transformers, which the official code loads.
"""

from __future__ import annotations

from typing import Any

from mini_internvl.model.config import ConfigError, DecoderConfig
from mini_internvl.model.fields import Fields
from mini_internvl.model.llms import TINY, Gguf, Names

ARCHITECTURE = "Qwen3ForCausalLM"
TEMPLATE = "internvl2_5"
TOKENIZER = ("vocab.json", "merges.txt")
IMAGE_TOKEN = 151671


def _sized(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "attention_bias": False,
        "use_sliding_window": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }


SIZES: dict[str, dict[str, Any]] = {
    "3.5-1B": _sized(1024, 3072, 28, 16),
    "3.5-2B": _sized(2048, 6144, 28, 16),
    "3.5-4B": _sized(2560, 9728, 36, 32),
}
EXAMPLE = {**TINY, "architectures": [ARCHITECTURE], "head_dim": 12}
NAMES = Names()
GGUF = Gguf(architecture="qwen3", wide_heads=True)


def read_config(fields: Fields) -> DecoderConfig:
    """ConfigError when the checkpoint has attention biases, which no released member has."""
    if fields.flag("attention_bias", False, quiet=True):
        raise ConfigError("llm_config.attention_bias is true; Qwen3 with attention biases is not supported")
    window = fields.integer("sliding_window", None, high=10**9, quiet=True)
    return DecoderConfig.from_official(
        fields,
        architecture=ARCHITECTURE,
        norm_eps=1e-6,
        max_positions=32768,
        head_dim=128,
        qk_norm=True,
        sliding_window=window if fields.flag("use_sliding_window", False, quiet=True) else None,
    )
