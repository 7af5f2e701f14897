"""The examples of the language models, and a maker of whole models around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mini_internvl import plugins
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
LLMS: dict[str, dict[str, Any]] = {
    name: plugins.find("model.llms", name).EXAMPLE for name in plugins.list_names("model.llms")
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
