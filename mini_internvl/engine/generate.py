"""Token generation: one prefill, then one token a step for every unfinished row, with a KV cache.

All rows of a batch are answered together, so that a step serves many; rows that have finished leave the batch.
:mod:`mini_internvl.engine.prefill` reads the prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_internvl.engine.prefill import prefill
from mini_internvl.model.decoder import KVCache
from mini_internvl.model.vlm import InternVL


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


@torch.inference_mode()
def generate(
    model: InternVL,
    prompts: Sequence[Sequence[int]],
    visual_tokens: Tensor | None,
    config: GenerationConfig,
    stop_ids: frozenset[int],
    shown: Sequence[Hashable] | None = None,
) -> Iterator[dict[int, int]]:
    """Answer a batch of prompts.

    Args:
        model: in eval mode.
        prompts: token ids of each row, the assistant's turn open.
        visual_tokens: (N, tokens per tile, hidden) of all rows in order, or ``None``.
        config: how tokens are drawn.
        stop_ids: tokens that end an answer; they are not returned.
        shown: what the images of each row are; what rows with the same ones begin with is read once.

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
    hidden = prefill(model, prompts, visual_tokens, cache, shown)[:, None]
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
