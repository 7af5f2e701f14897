"""Tiny configurations of the three language models, and a maker of whole models around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import compose, fresh
from mini_internvl.model.vlm import InternVL

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "norm_type": "layer_norm",
    "qkv_bias": True,
    "qk_normalization": False,
}
BASE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}
LLMS: dict[str, dict[str, Any]] = {
    "qwen2": {**BASE, "architectures": ["Qwen2ForCausalLM"]},
    "internlm2": {
        **BASE,
        "architectures": ["InternLM2ForCausalLM"],
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "phi3": {
        **BASE,
        "architectures": ["Phi3ForCausalLM"],
        "original_max_position_embeddings": 32,
        "sliding_window": 12,
        "rope_scaling": {
            "type": "su",
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 4.0, 8.0],
        },
    },
}


@pytest.fixture(params=sorted(LLMS))
def llm(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The official llm_config of each backbone, tiny."""
    return dict(LLMS[request.param])


@pytest.fixture
def make() -> Callable[..., InternVL]:
    """``make("qwen2", ps_version="v1", vision={"norm_type": "rms_norm"})`` -> a tiny model in eval mode."""

    def build(name: str = "qwen2", *, vision: dict[str, Any] | None = None, **extra: Any) -> InternVL:
        raw = compose({**VISION, **(vision or {})}, LLMS[name], image_size=56, max_tiles=4, **extra)
        model = fresh(VLMConfig.from_official(raw), seed=1)
        model.image_token_id = 54
        with torch.no_grad():  # biases and norms start at 0 and 1, which would hide one that is forgotten
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
        return model.eval()

    return build
