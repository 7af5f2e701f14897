"""Prompts with fewer visual tokens: what ``model.reduction`` leaves of each image, and its placeholders cut alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mini_internvl.inputs.prepare import Prompt
from mini_internvl.model.reduction import Reduction, reduce_tokens


@torch.inference_mode()
def reduce_prompts(
    prompts: Sequence[Prompt], visual: Sequence[Tensor | None], image_token: int | None, reduction: Reduction
) -> list[Prompt]:
    """The prompts with what is kept of their visual tokens; those without images are returned as they are.

    ``visual`` are (N, tokens, LLM hidden) of each prompt, as many rows in all as it has placeholders. Prompts about the
    same images share what is kept of them.
    """
    done: dict[tuple[int, tuple[int, ...]], tuple[Tensor, list[bool]]] = {}
    reduced: list[Prompt] = []
    for prompt, tokens in zip(prompts, visual, strict=True):
        if tokens is None or not len(tokens):
            reduced.append(prompt)
            continue
        rows = tokens.flatten(0, 1)
        runs = _runs(prompt.input_ids, image_token)
        assert (len(runs), sum(runs)) == (len(prompt.tiles), len(rows)), "each image is one run of placeholders"
        key = id(prompt.pixel_values), tuple(runs)
        if key not in done:
            done[key] = reduce_tokens(rows, [*zip(runs, prompt.tiles, strict=True)], reduction)
        kept, stays = done[key]
        places = iter(stays)
        ids = [number for number in prompt.input_ids if number != image_token or next(places)]
        saved = prompt.saved + len(rows) - len(kept)
        reduced.append(replace(prompt, input_ids=ids, visual=kept[:, None], saved=saved))
    return reduced


def _runs(ids: Sequence[int], image_token: int | None) -> list[int]:
    """Lengths of the runs of placeholders among token ids."""
    runs, before = list[int](), None
    for number in ids:
        if number == image_token:
            if before == image_token:
                runs[-1] += 1
            else:
                runs.append(1)
        before = number
    return runs
