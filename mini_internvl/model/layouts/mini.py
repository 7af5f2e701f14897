"""Our own layout: the model's tensors under their own names, nothing fused, so that loading cuts nothing.

config.json holds the official dictionary under ``official``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from mini_internvl.model.config import VLMConfig
from mini_internvl.model.fields import Fields
from mini_internvl.model.layouts.official import DROPPED

NAME = "mini"
MODEL_TYPE = "mini_internvl"


def matches(raw: Mapping[str, Any]) -> bool:
    return raw.get("model_type") == MODEL_TYPE


def to_official_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **copy.deepcopy(dict(Fields(raw).needed_table("official").raw)),
        "torch_dtype": raw.get("dtype") or raw.get("torch_dtype") or "float32",
        "img_context_token_id": raw.get("img_context_token_id"),
    }


def from_official_config(official: Mapping[str, Any], image_token_id: int | None, dtype: str) -> dict[str, Any]:
    """The official dictionary with the weights' type and the id of ``<IMG_CONTEXT>`` around it."""
    return {
        "architectures": ["InternVL"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "img_context_token_id": image_token_id,
        "official": {key: value for key, value in copy.deepcopy(dict(official)).items() if key not in DROPPED},
    }


def read(tensors: Iterable[tuple[str, Tensor]], config: VLMConfig) -> Iterator[tuple[str, Tensor]]:
    yield from tensors


def write(state: Mapping[str, Tensor], config: VLMConfig) -> Iterator[tuple[str, Tensor]]:
    yield from state.items()
