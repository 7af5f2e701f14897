"""InternLM2: the decoder of the 2B (internlm2-chat-1_8b). Fused query-key-value rows, dynamic NTK rotary, no biases.

``wqkv`` is grouped by key-value head: the query rows of the head's group, then its key rows, then its value rows.
``w1`` is the gate, ``w3`` the up and ``w2`` the down projection.
Source: ``internvl/model/internlm2/modeling_internlm2.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mini_internvl.model.config import ConfigError, DecoderConfig
from mini_internvl.model.fields import Fields
from mini_internvl.model.llms import base_config

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURE = "InternLM2ForCausalLM"
TEMPLATE = "internlm2-chat"
SIZES: dict[str, dict[str, Any]] = {
    "2B": {
        "architectures": [ARCHITECTURE],
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
        "hidden_act": "silu",
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    },
}
_NAMES = {
    "tok_embeddings": "embed_tokens",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_BACK = {ours: official for official, ours in _NAMES.items()}


def read_config(fields: Fields) -> DecoderConfig:
    """Official llm_config -> DecoderConfig.

    Raises:
        ConfigError: the checkpoint has attention biases, which no released member has.
    """
    if fields.flag("bias", False, quiet=True):
        raise ConfigError("llm_config.bias is true; InternLM2 with attention biases is not supported")
    return base_config(fields, architecture=ARCHITECTURE, norm_eps=1e-6, max_positions=2048)


def split(key: str, tensor: Tensor, config: DecoderConfig) -> Iterable[tuple[str, Tensor]]:
    """One official tensor -> ours; ``wqkv`` (K * (groups + 2) * D, hidden) is un-grouped into q, k and v."""
    if key == "output.weight":
        yield "lm_head.weight", tensor
        return
    key = key.removeprefix("model.")
    if "attention.wqkv" in key:
        groups = config.heads // config.kv_heads
        rows = tensor.view(config.kv_heads, groups + 2, config.head_dim, -1)
        parts = {"q": rows[:, :groups], "k": rows[:, groups : groups + 1], "v": rows[:, groups + 1 :]}
        for name, part in parts.items():
            yield key.replace("attention.wqkv", f"self_attn.{name}_proj"), part.reshape(-1, tensor.shape[-1])
        return
    for official, ours in _NAMES.items():
        key = key.replace(f"{official}.weight", f"{ours}.weight")
    yield key, tensor


def join(state: Mapping[str, Tensor], config: DecoderConfig) -> Iterable[tuple[str, Tensor]]:
    """Our tensors under the official names, q, k and v grouped again."""
    import torch

    for key, tensor in state.items():
        if key == "lm_head.weight":
            yield "output.weight", tensor
        elif "self_attn.q_proj" in key:
            hidden = tensor.shape[-1]
            heads = (config.kv_heads, -1, config.head_dim, hidden)
            parts = [state[key.replace("q_proj", f"{name}_proj")].reshape(heads) for name in "qkv"]
            name = key.replace("self_attn.q_proj", "attention.wqkv")
            yield f"model.{name}", torch.cat(parts, dim=1).reshape(-1, hidden)
        elif "self_attn.k_proj" not in key and "self_attn.v_proj" not in key:
            for ours, official in _BACK.items():
                key = key.replace(f"{ours}.weight", f"{official}.weight")
            yield f"model.{key}", tensor
