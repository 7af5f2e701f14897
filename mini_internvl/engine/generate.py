"""Token generation: one prefill, then one token a step for every unfinished row, with a KV cache.

Rows of a batch are padded on the left and their positions count from their first real token, so that an answer does
not depend on its neighbours. Prompts are read in groups of like length, so that little is padded, and then answered
together, so that a step serves many. Rows that have finished leave the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_internvl.model.decoder import KVCache
from mini_internvl.model.vlm import InternVL

PREFILL_TOKENS = 4096
"""Most tokens, padding included, that are read at once."""
PADDED = 1.25
"""Longest prompt of a group over its shortest."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How an answer is drawn."""

    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 takes the most likely token; above, the distribution is sharpened (<1) or flattened (>1) and sampled."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities reach this sum."""
    top_k: int = 0
    """Sample among this many most likely tokens; 0 for all."""
    seed: int | None = None
    """Seed of sampling; ``None`` draws a new one."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all tokens) or above")


def pick(logits: Tensor, config: GenerationConfig, generator: torch.Generator | None) -> Tensor:
    """Next token of each row, (B, V) -> (B,)."""
    if config.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / config.temperature
    if config.top_k:
        smallest = logits.topk(min(config.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if config.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= config.top_p  # the first token always stays
        logits = logits.scatter(-1, order, ordered.masked_fill(beyond, -torch.inf))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def groups_of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Rows by length, cut where padding or the tokens of a group would grow too large."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        last = groups[-1] if groups else []
        fits = last and lengths[row] <= PADDED * lengths[last[0]] and lengths[row] * (len(last) + 1) <= PREFILL_TOKENS
        if fits:
            last.append(row)
        else:
            groups.append([row])
    return groups


def prefill(model: InternVL, prompts: Sequence[Sequence[int]], visual_tokens: Tensor | None, cache: KVCache) -> Tensor:
    """Read the prompts into an empty cache, each ending at the same place.

    Args:
        model: in eval mode.
        prompts: token ids of each row.
        visual_tokens: (N, tokens per tile, hidden) of all rows in order, or ``None``.
        cache: of as many rows; receives keys and values up to the longest prompt.

    Returns:
        (B, hidden) of each prompt's last token.

    Raises:
        TokenCountError: placeholders and visual tokens differ in number.
    """
    device, longest = model.device, max(map(len, prompts))
    visual = _by_row(model, prompts, visual_tokens)
    groups = groups_of_like_length([len(prompt) for prompt in prompts])
    last = torch.empty(len(prompts), model.config.llm.hidden_size, dtype=model.dtype, device=device)
    for group in groups:
        length = max(len(prompts[row]) for row in group)
        ids = torch.zeros(len(group), length, dtype=torch.int64)
        padding = torch.zeros_like(ids)
        for place, row in enumerate(group):
            ids[place, length - len(prompts[row]) :] = torch.tensor(prompts[row])
            padding[place, length - len(prompts[row]) :] = 1
        ids, padding = ids.to(device), padding.to(device)
        positions = (padding.cumsum(1) - 1).clamp(min=0)
        shown = [tiles for row in group if (tiles := visual[row]) is not None]
        own = KVCache(model.config.llm, len(group), length, dtype=model.dtype, device=device)
        given = torch.cat(shown) if shown else None
        last[group] = model.hidden(ids, None, padding, positions, own, given)[:, -1]
        cache.take(own, group, longest)
    cache.length = longest
    return last


def _by_row(model: InternVL, prompts: Sequence[Sequence[int]], visual_tokens: Tensor | None) -> list[Tensor | None]:
    """The tiles of each row, counted by its placeholders; what does not come out even goes to the last row, whose
    check raises."""
    if visual_tokens is None or not len(visual_tokens):
        return [None] * len(prompts)
    found: list[Tensor | None] = []
    start = 0
    for row, prompt in enumerate(prompts):
        count = list(prompt).count(model.image_token_id) // visual_tokens.shape[1] if model.image_token_id else 0
        end = start + count if row + 1 < len(prompts) else len(visual_tokens)
        found.append(visual_tokens[start:end] if end > start else None)
        start = end
    return found


@torch.inference_mode()
def generate(
    model: InternVL,
    prompts: Sequence[Sequence[int]],
    visual_tokens: Tensor | None,
    config: GenerationConfig,
    stop_ids: frozenset[int],
) -> Iterator[dict[int, int]]:
    """Answer a batch of prompts.

    Args:
        model: in eval mode.
        prompts: token ids of each row, the assistant's turn open.
        visual_tokens: (N, tokens per tile, hidden) of all rows in order, or ``None``.
        config: how tokens are drawn.
        stop_ids: tokens that end an answer; they are not returned.

    Yields:
        After each step, row -> new token, for the rows that go on. Ends when all rows have.
    """
    device, longest = model.device, max(map(len, prompts))
    padding = torch.zeros(len(prompts), longest + config.max_new_tokens, dtype=torch.int64, device=device)
    for row, prompt in enumerate(prompts):
        padding[row, longest - len(prompt) :] = 1
    cache = KVCache(model.config.llm, len(prompts), longest + config.max_new_tokens, dtype=model.dtype, device=device)
    generator = None
    if config.temperature > 0:
        generator = torch.Generator(device)
        generator.manual_seed(config.seed) if config.seed is not None else generator.seed()
    rows = list(range(len(prompts)))
    hidden = prefill(model, prompts, visual_tokens, cache)[:, None]
    next_position = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
    for step in range(config.max_new_tokens):
        tokens = pick(model.language_model.lm_head(hidden[:, -1]), config, generator)
        values = tokens.tolist()
        going = [i for i, value in enumerate(values) if value not in stop_ids]
        if not going:
            return
        yield {rows[i]: values[i] for i in going}
        if step + 1 == config.max_new_tokens:
            return
        if len(going) < len(rows):
            kept = torch.tensor(going, device=device)
            rows = [rows[i] for i in going]
            tokens, padding, next_position = tokens[kept], padding[kept], next_position[kept]
            cache.keep(kept)
        # Not through model.hidden: an <IMG_CONTEXT> that the model itself writes is a token like any other.
        x = model.language_model.embed_tokens(tokens[:, None])
        seen = padding[:, : longest + step + 1]
        hidden = model.language_model(x, padding=seen, position_ids=next_position, cache=cache)
        next_position = next_position + 1
