"""Tiny checkpoints of every language model, with the tokenizer of the tiny checkpoint of all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_internvl import plugins
from mini_internvl.inputs.tokenizer_files import FILES, load_tokenizer
from mini_internvl.model.checkpoint import save_model
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import compose, fresh

VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "norm_type": "layer_norm",
    "qkv_bias": True,
    "qk_normalization": False,
}


@pytest.fixture(scope="session")
def make(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make("phi3", select_layer=-2, vision={...}, llm={...})`` -> an official folder in float32."""
    size = load_tokenizer(checkpoint).size

    def build(name: str = "qwen2", *, vision: Any = None, llm: Any = None, **extra: Any) -> Path:
        decoder = {**plugins.find("model.llms", name).EXAMPLE, "vocab_size": size + 3, **(llm or {})}
        settings = {"image_size": 56, "max_tiles": 4, "template": "Hermes-2", "img_context_token_id": size - 7, **extra}
        model = fresh(VLMConfig.from_official(compose({**VISION, **(vision or {})}, decoder, **settings)), seed=1)
        with torch.no_grad():  # biases and norms start at 0 and 1, which would hide one that is forgotten
            for number, parameter in enumerate(model.parameters()):
                if parameter.ndim == 1:
                    seed = torch.Generator().manual_seed(number)
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=seed))
        model.image_token_id = settings["img_context_token_id"]
        files = [checkpoint / file for file in FILES if (checkpoint / file).exists()]
        return save_model(model, tmp_path_factory.mktemp(name) / name, extra_files=files)

    return build
