"""Qwen2 and Qwen2.5: the decoder of the 1B, of nano and of most sizes of 2.5 and 3. Biases on queries, keys and values.

Its official tensor names are ours, so nothing is cut or glued. The embedding table and the output matrix are separate
tensors in this family although the base model ties them.
"""

from __future__ import annotations

from typing import Any

from mini_internvl.model.config import DecoderConfig
from mini_internvl.model.fields import Fields
from mini_internvl.model.llms import TINY, Gguf, Names

ARCHITECTURE = "Qwen2ForCausalLM"
TEMPLATE = "Hermes-2"
TOKENIZER = ("vocab.json", "merges.txt")
IMAGE_TOKEN = None
_SHARED: dict[str, Any] = {
    "model_type": "qwen2",
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "use_sliding_window": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}


def _sized(vocabulary: int, width: int, inner: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**_SHARED, **sizes, "num_attention_heads": heads, "num_key_value_heads": 2, **more}


_3: dict[str, Any] = {"max_window_layers": 70, "rope_scaling": {"type": "dynamic", "factor": 2.0}}  # all of 3
SIZES: dict[str, dict[str, Any]] = {
    "1B": _sized(151655, 896, 4864, 24, 14),
    "2.5-1B": _sized(151674, 896, 4864, 24, 14),
    "2.5-4B": _sized(151674, 2048, 11008, 36, 16),
    "3-1B": _sized(151674, 896, 4864, 24, 14, **_3),
    "3-2B": _sized(151674, 1536, 8960, 28, 12, **_3),
}
EXAMPLE = {**TINY, "architectures": [ARCHITECTURE]}
NAMES = Names()
GGUF = Gguf(architecture="qwen2")


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
