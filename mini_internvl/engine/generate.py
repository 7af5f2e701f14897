"""Token generation: one prefill, then one token a step for every unfinished row, with a KV cache.

All rows of a batch are answered together, so that a step serves many; rows that have finished leave the batch.
:mod:`mini_internvl.engine.prefill` reads the prompts. Messages and text are the engine's: here are ids alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mini_internvl.engine.prefill import prefill
from mini_internvl.model.decoder import KVCache
from mini_internvl.model.vlm import InternVL

FinishReason = Literal["stop", "length", "context"]
"""A stop token came, max_new_tokens is reached, or the model has no further positions."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How an answer is drawn."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the most likely token; above, the distribution is sharpened (<1) or flattened (>1) and sampled."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities reach this sum."""
    top_k: int = 0
    """Sample among this many most likely tokens; 0 for all."""
    seed: int | None = None
    """Seed of sampling, for every answer of a batch as if it were alone; ``None`` draws new ones."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all tokens) or above")


class Step(NamedTuple):
    """What one step of generation gives one row."""

    row: int
    token: int | None  # the new token; ``None`` for a stop token, which is no part of the answer
    finish_reason: FinishReason | None  # why the row ends here; ``None`` while it goes on


def pick(logits: Tensor, config: GenerationConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Next token of each row, (B, V) -> (B,); one generator a row, needed above temperature 0."""
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
    sums = logits.softmax(-1).cumsum(-1)
    draws = torch.cat([torch.rand(1, 1, generator=generator) for generator in generators])  # (B, 1) below 1
    places = (draws * (1 - 2**-20)).to(sums.device) * sums[:, -1:]  # rounding must not reach the whole sum
    return torch.searchsorted(sums, places, right=True)[:, 0]


def split_batches(lengths: Sequence[int], max_new_tokens: int, most_tokens: int) -> list[range]:
    """Cut prompts, in order, into batches whose cache holds no more than so many tokens, or one prompt.

    A batch's cache has room for its longest prompt and ``max_new_tokens`` in every row.
    """
    batches: list[range] = []
    first, longest = 0, 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > first and (row + 1 - first) * (longest + max_new_tokens) > most_tokens:
            batches.append(range(first, row))
            first, longest = row, length
    return [*batches, range(first, len(lengths))]


@torch.inference_mode()
def generate(
    model: InternVL,
    prompts: Sequence[Sequence[int]],
    visual: Sequence[Tensor | None],
    config: GenerationConfig,
    stop_ids: frozenset[int],
    *,
    image_keys: Sequence[Hashable] | None = None,
    unused_ids: Tensor | None = None,
) -> Iterator[list[Step]]:
    """Answer a batch of prompts.

    Args:
        prompts, visual, image_keys: see :func:`mini_internvl.engine.prefill.prefill`; each prompt leaves the
            assistant's turn open and is shorter than the model's context.
        stop_ids: tokens that end an answer.
        unused_ids: (n,) rows of the vocabulary that are no token and cannot be drawn, on the model's device.

    Yields:
        The new tokens, or ends, of the rows that went on; a row that has ended does not come again.
    """
    device, lengths = model.device, [len(prompt) for prompt in prompts]
    context = model.config.llm.rope.context_length
    limits = [min(config.max_new_tokens, context - length) for length in lengths]
    longest, most = max(lengths), max(limits)
    assert min(limits) > 0, "a prompt fills the model's context"
    padding = longest - torch.tensor(lengths)[:, None]
    real = (torch.arange(longest + most) >= padding).to(device)  # (B, S), False at the padding on the left
    cache = KVCache(model.config.llm, len(prompts), longest + most, dtype=model.dtype, device=device)
    generators = [torch.Generator() for _ in prompts if config.temperature > 0]
    for generator in generators:
        generator.manual_seed(config.seed) if config.seed is not None else generator.seed()
    rows = list(range(len(prompts)))
    hidden = prefill(model, prompts, visual, cache, range(len(prompts)) if image_keys is None else image_keys)[:, None]
    positions = torch.tensor(lengths, device=device)[:, None]
    for step in range(1, most + 1):
        logits = model.language_model.lm_head(hidden[:, -1])
        if unused_ids is not None:
            logits.index_fill_(-1, unused_ids, -torch.inf)
        tokens = pick(logits, config, generators)
        pairs = zip(rows, tokens.tolist(), strict=True)
        at_limit: FinishReason = "length" if step == config.max_new_tokens else "context"
        ends = {row: at_limit if step == limits[row] else None for row in rows}
        found = [Step(row, None, "stop") if token in stop_ids else Step(row, token, ends[row]) for row, token in pairs]
        yield found
        going = [place for place, one in enumerate(found) if one.finish_reason is None]
        if not going:
            return
        if len(going) < len(rows):
            kept = torch.tensor(going, device=device)
            rows = [rows[place] for place in going]
            generators = [generators[place] for place in going] if generators else generators
            tokens, real, positions = tokens[kept], real[kept], positions[kept]
            cache.keep(going)
        # Not through model.hidden: an <IMG_CONTEXT> that the model itself writes is a token like any other.
        x = model.language_model.embed_tokens(tokens[:, None])
        padded = any(lengths[row] < longest for row in rows)
        seen = real[:, : longest + step] if padded else None
        hidden = model.language_model(x, padding=seen, position_ids=positions, cache=cache)
        positions = positions + 1
