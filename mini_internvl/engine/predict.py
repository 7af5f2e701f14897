"""What heads say of prompts: one reading of each prompt, only as many decoder blocks as they need, and no cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mini_internvl.inputs.prepare import Prompt
from mini_internvl.model.heads import Heads, Value, last_states, mean_states
from mini_internvl.model.vlm import InternVL

TOKENS_TOGETHER = 4096  # tokens, padding included, that are read at once; a longer prompt is read alone


@torch.inference_mode()
def predict(
    model: InternVL, heads: Heads, prompts: Sequence[Prompt], visual: Sequence[Tensor | None]
) -> list[dict[str, Value]]:
    """The values of all heads for each prompt, in order; ``visual`` are (N, tokens per tile, hidden) of each.

    ValueError where heads read visual tokens and a prompt has none.
    """
    if heads.config.at == "visual" and any(tokens is None for tokens in visual):
        raise ValueError("the heads of this model read its visual tokens; give every conversation an image")
    found: list[dict[str, Value]] = [{} for _ in prompts]
    for rows in _groups([len(prompt.input_ids) for prompt in prompts]):
        state = _states(model, heads, [prompts[row].input_ids for row in rows], [visual[row] for row in rows])
        for row, values in zip(rows, heads.values(state), strict=True):
            found[row] = values
    return found


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of prompts that are read together: neighbours in length, up to so many tokens with their padding."""
    group: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and lengths[place] * (len(group) + 1) > TOKENS_TOGETHER:
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def _states(model: InternVL, heads: Heads, prompts: Sequence[Sequence[int]], visual: Sequence[Tensor | None]) -> Tensor:
    """(B, hidden) states that the heads read, of prompts padded on the right, where causal attention does not look."""
    lengths = [len(prompt) for prompt in prompts]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids = ids.to(model.device)
    tiles = [tokens for tokens in visual if tokens is not None]
    [hidden] = model.states(
        ids,
        [heads.config.layers],
        visual_tokens=torch.cat(tiles) if tiles else None,
        lengths=torch.tensor(lengths, device=model.device)[:, None],
    )
    if heads.config.at == "last":
        return last_states(hidden, lengths)
    rows = torch.arange(len(prompts), device=model.device)[:, None]
    assert model.image_token_id is not None
    return mean_states(hidden, rows.where(torch.eq(ids, model.image_token_id), -1), len(prompts))
