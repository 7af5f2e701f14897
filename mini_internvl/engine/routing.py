"""Prompts as a Flash model reads them: its router leaves out visual tokens where little is lost by it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mini_internvl.engine.images import image_keys
from mini_internvl.inputs.prepare import Prompt
from mini_internvl.model.config import FlashConfig
from mini_internvl.model.flash import cut_placeholders, encode_routed
from mini_internvl.model.vlm import InternVL

MOST_KEPT = 16  # conversations' images


class Router:
    """Routes prompts by their own tiles alone; what was read last is kept."""

    def __init__(self, model: InternVL) -> None:
        self._model = model
        self._kept: OrderedDict[tuple[object, ...], tuple[Tensor, list[bool]]] = OrderedDict()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def route(self, prompts: Sequence[Prompt], flash: FlashConfig) -> list[Prompt]:
        """The prompts without the placeholders of tokens that are left out, and with their visual tokens."""
        return [
            self._route(prompt, flash) if len(prompt.pixel_values) and prompt.visual is None else prompt
            for prompt in prompts
        ]

    def _route(self, prompt: Prompt, flash: FlashConfig) -> Prompt:
        model, config = self._model, self._model.config
        with self._lock:
            key = (image_keys(prompt), flash.relative, flash.absolute)
            if key not in self._kept:
                self._kept[key] = encode_routed(model, prompt.pixel_values, flash)
            self._kept.move_to_end(key)
            visual, short = self._kept[key]
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        assert model.image_token_id is not None
        ids = cut_placeholders(
            prompt.input_ids, model.image_token_id, config.tokens_per_tile, config.short_tokens, short
        )
        saved = len(prompt.input_ids) - len(ids)
        return replace(prompt, input_ids=ids, visual=visual, visual_key=f"flash {key}", saved=saved)

    def forget(self) -> None:
        """Drop what is kept."""
        with self._lock:
            self._kept.clear()
