"""Prompts with fewer visual tokens: what ``model.reduction`` leaves of each image, and its placeholders cut alike."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mini_internvl.inputs.prepare import Prompt
from mini_internvl.model.reduction import Reduction, reduce_tokens

MOST_KEPT = 16  # conversations' images
Encode = Callable[[Sequence[Prompt]], Sequence[Tensor | None]]
"""Visual tokens (N, tokens, LLM hidden) of each prompt, as many rows in all as it has placeholders."""


class Reducer:
    """Reduces prompts by their own images alone; what was read last is kept."""

    def __init__(self, encode: Encode, image_token: int | None) -> None:
        self._encode, self._image_token = encode, image_token
        self._kept: OrderedDict[Hashable, tuple[Tensor, list[bool]]] = OrderedDict()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def reduce(self, prompts: Sequence[Prompt], reduction: Reduction, name: str) -> list[Prompt]:
        """The prompts with what is kept of their visual tokens; those without images, or reduced already, are returned
        as they are.

        ``name`` tells all that visual tokens depend on besides the images.
        """
        with self._lock:
            whole = [prompt for prompt in prompts if prompt.tiles and not prompt.visual_key.startswith(f"{name} ")]
            keys: dict[int, Hashable] = {id(prompt): _key(prompt, name) or id(prompt) for prompt in whole}
            found = {key: self._kept[key] for key in keys.values() if key in self._kept}
            missing = {keys[id(prompt)]: prompt for prompt in whole if keys[id(prompt)] not in found}
            for (key, prompt), tokens in zip(missing.items(), self._encode([*missing.values()]), strict=True):
                assert tokens is not None, "a prompt with images has visual tokens"
                sizes = [*zip(_runs(prompt.input_ids, self._image_token), prompt.tiles, strict=True)]
                found[key] = reduce_tokens(tokens.flatten(0, 1), sizes, reduction)
            for key, one in found.items():
                if isinstance(key, str):  # others are of prompts made by hand
                    self._kept[key] = one
                    self._kept.move_to_end(key)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return [
            self._cut(prompt, *found[keys[id(prompt)]], _key(prompt, name)) if id(prompt) in keys else prompt
            for prompt in prompts
        ]

    def _cut(self, prompt: Prompt, kept: Tensor, stays: Sequence[bool], key: str) -> Prompt:
        places = iter(stays)
        ids = [number for number in prompt.input_ids if number != self._image_token or next(places)]
        saved = prompt.saved + len(stays) - len(kept)
        return replace(prompt, input_ids=ids, visual=kept[:, None], visual_key=key, saved=saved)

    def forget(self) -> None:
        """Drop what is kept."""
        with self._lock:
            self._kept.clear()


def _key(prompt: Prompt, name: str) -> str:
    """Stands for what is kept of a prompt's visual tokens; empty for a prompt that was made by hand."""
    known = prompt.image_keys and (prompt.visual is None or prompt.visual_key)
    return f"{name} {prompt.image_keys} {prompt.visual_key}" if known else ""


def _runs(ids: Sequence[int], image_token: int | None) -> list[int]:
    """Lengths of the runs of placeholders among token ids; each image is one."""
    runs, before = list[int](), None
    for number in ids:
        if number == image_token:
            if before == image_token:
                runs[-1] += 1
            else:
                runs.append(1)
        before = number
    return runs
