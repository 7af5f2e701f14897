"""Reading prompts into the KV cache: in groups of like length, so that little is padded.

Prompts with the same images and the same beginning share one prefill of it. In the batch's cache all prompts end at one
place, so rows are padded on the left there; while they are read they are padded on the right, which causal attention
needs no mask for. Positions count real tokens, so that an answer does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mini_internvl.model.decoder import CacheSpan, KVCache, rotation_group
from mini_internvl.model.vlm import InternVL

PREFILL_TOKENS = 4096  # most tokens, padding included, that are read at once; a longer prompt is read alone
MOST_PADDING = 1.25  # longest piece of a group over its shortest
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tokens that are read together: a whole prompt, a prefix that several share, or what follows one."""

    ids: Sequence[int]
    prompt_length: int  # tokens of the whole prompt, on which the rotation may depend
    visual: Tensor | None = None  # (N, tokens per tile, hidden) for the placeholders among the ids
    prefix: CacheSpan | None = None  # what stands before the ids, read already

    @property
    def start(self) -> int:
        return self.prefix.count if self.prefix else 0

    @property
    def length(self) -> int:
        return self.start + len(self.ids)


def prefill(
    model: InternVL,
    prompts: Prompts,
    visual: Sequence[Tensor | None],
    cache: KVCache,
    image_keys: Sequence[Hashable],
) -> Tensor:
    """Read the prompts into an empty cache; returns (B, hidden) of each prompt's last token.

    TokenCountError when placeholders and visual tokens differ in number.

    Args:
        prompts: token ids of each row.
        visual: (N, tokens per tile, hidden) of each row, or ``None``.
        cache: of as many rows; receives keys and values up to the longest prompt.
        image_keys: names the images of each row; rows with equal keys and an equal prompt up to the last image share
            one prefill of it.
    """
    pieces = [
        Piece(ids=prompt, visual=tokens, prompt_length=len(prompt))
        for prompt, tokens in zip(prompts, visual, strict=True)
    ]
    shared = _prefix_groups(model, prompts, image_keys)
    prefixes = [
        Piece(ids=prompts[rows[0]][:count], visual=visual[rows[0]], prompt_length=len(prompts[rows[0]]))
        for count, rows in shared
    ]
    for places, spans, _ in _read_in_groups(model, prefixes):
        for place, span in zip(places, spans, strict=True):
            for row in shared[place][1]:
                rest = prompts[row][span.count :]
                pieces[row] = Piece(ids=rest, prefix=span, prompt_length=len(prompts[row]))
    last = torch.empty(len(prompts), model.config.llm.hidden_size, dtype=model.dtype, device=model.device)
    cache.length = max(map(len, prompts))
    for rows, spans, hidden in _read_in_groups(model, pieces):
        last[rows] = hidden
        for row, span in zip(rows, spans, strict=True):
            cache.copy(row, span, cache.length)
    return last


def _prefix_groups(model: InternVL, prompts: Prompts, image_keys: Sequence[Hashable]) -> list[tuple[int, list[int]]]:
    """(number of tokens up to the last image, rows that share them), where there are several."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row, (prompt, key) in enumerate(zip(prompts, image_keys, strict=True)):
        count = max((place for place, token in enumerate(prompt) if token == model.image_token_id), default=-1) + 1
        if 0 < count < len(prompt):
            rotation = rotation_group(model.config.llm.rope, len(prompt))
            groups.setdefault((count, tuple(prompt[:count]), key, rotation), []).append(row)
    return [(key[0], rows) for key, rows in groups.items() if len(rows) > 1]


def _read_in_groups(model: InternVL, pieces: Sequence[Piece]) -> Iterator[tuple[list[int], list[CacheSpan], Tensor]]:
    """Read pieces of like length together: places of the pieces in a group, their spans, (B, hidden) of their ends."""
    group: list[int] = []
    for place in [*sorted(range(len(pieces)), key=lambda i: (pieces[i].start > 0, pieces[i].length)), -1]:
        if group:
            first, new = pieces[group[0]], pieces[place]
            alike = (first.start > 0) == (new.start > 0) and new.length <= MOST_PADDING * first.length
            if place < 0 or not alike or new.length * (len(group) + 1) > PREFILL_TOKENS:
                yield group, *_read(model, [pieces[i] for i in group])
                group = []
        group.append(place)


def _read(model: InternVL, pieces: Sequence[Piece]) -> tuple[list[CacheSpan], Tensor]:
    """Read pieces into a cache of their own, prefixes ending at one place: spans with their prefix, (B, hidden)."""
    device = model.device
    start, new = max(piece.start for piece in pieces), max(len(piece.ids) for piece in pieces)
    cache = KVCache(model.config.llm, len(pieces), start + new, dtype=model.dtype, device=device)
    cache.length = start
    ids = torch.zeros(len(pieces), new, dtype=torch.int64)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece.ids)] = torch.tensor(piece.ids)
        if piece.prefix:
            cache.copy(row, piece.prefix, start)
    starts = torch.tensor([[piece.start] for piece in pieces])
    counts = torch.tensor([[len(piece.ids)] for piece in pieces])
    padding = None if bool((starts == start).all()) else torch.arange(start + new) >= start - starts
    positions = starts + torch.minimum(torch.arange(new), counts - 1)
    tiles = [piece.visual for piece in pieces if piece.visual is not None]
    hidden = model.hidden(
        ids.to(device),
        attention_mask=None if padding is None else padding.to(device),
        position_ids=positions.to(device),
        lengths=torch.tensor([[piece.prompt_length] for piece in pieces], device=device),
        cache=cache,
        visual_tokens=torch.cat(tiles) if tiles else None,
    )
    spans = [
        CacheSpan(cache=cache, row=row, start=start - piece.start, count=piece.length)
        for row, piece in enumerate(pieces)
    ]
    return spans, hidden[torch.arange(len(pieces)), counts[:, 0] - 1]
