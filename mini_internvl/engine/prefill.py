"""Reading prompts into the KV cache: in groups of like length, so that little is padded, and what several prompts begin
with (the same images) only once.

Rows end at the same place of the cache: they are padded on the left, and their positions count from their first real
token, so that an answer does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mini_internvl.model.decoder import KVCache
from mini_internvl.model.vlm import InternVL, TokenCountError

PREFILL_TOKENS = 4096
"""Most tokens, padding included, that are read at once."""
PADDED = 1.25
"""Longest prompt of a group over its shortest."""
Prompts = Sequence[Sequence[int]]


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


def prefill(
    model: InternVL,
    prompts: Prompts,
    visual_tokens: Tensor | None,
    cache: KVCache,
    shown: Sequence[Hashable] | None = None,
) -> Tensor:
    """Read the prompts into an empty cache.

    Args:
        model: in eval mode.
        prompts: token ids of each row.
        visual_tokens: (N, tokens per tile, hidden) of all rows in order, or ``None``.
        cache: of as many rows; receives keys and values up to the longest prompt.
        shown: what the images of each row are; rows that show the same and begin alike share that beginning.

    Returns:
        (B, hidden) of each prompt's last token.

    Raises:
        TokenCountError: placeholders and visual tokens differ in number.
    """
    visual = _by_row(model, prompts, visual_tokens)
    last = torch.empty(len(prompts), model.config.llm.hidden_size, dtype=model.dtype, device=model.device)
    cache.length = max(map(len, prompts))
    families = _families(model, prompts, shown)
    alone = sorted(set(range(len(prompts))) - {row for rows in families.values() for row in rows})
    for group in groups_of_like_length([len(prompts[row]) for row in alone]):
        rows = [alone[place] for place in group]
        own, hidden = _read(model, [prompts[row] for row in rows], [visual[row] for row in rows])
        last[rows] = hidden
        for place, row in enumerate(rows):
            cache.write(row, own, place, own.length - len(prompts[row]), len(prompts[row]), cache.length)
    _read_families(model, prompts, visual, cache, families, last)
    return last


def _families(
    model: InternVL, prompts: Prompts, shown: Sequence[Hashable] | None
) -> dict[tuple[Hashable, tuple[int, ...]], list[int]]:
    """(images, beginning up to the last image) -> rows, where there are several."""
    found: dict[tuple[Hashable, tuple[int, ...]], list[int]] = {}
    for row, prompt in enumerate(prompts if shown is not None and model.image_token_id is not None else []):
        images = [place for place, token in enumerate(prompt) if token == model.image_token_id]
        if images and images[-1] + 1 < len(prompt):
            assert shown is not None
            found.setdefault((shown[row], tuple(prompt[: images[-1] + 1])), []).append(row)
    return {key: rows for key, rows in found.items() if len(rows) > 1}


def _read_families(
    model: InternVL,
    prompts: Prompts,
    visual: Sequence[Tensor | None],
    cache: KVCache,
    families: dict[tuple[Hashable, tuple[int, ...]], list[int]],
    last: Tensor,
) -> None:
    """Read each family's beginning once, then what follows in every row of it."""
    beginnings = [list(ids) for _, ids in families]
    first = [rows[0] for rows in families.values()]
    held: dict[int, tuple[KVCache, int]] = {}  # row -> the cache of its beginning, and its place there
    for group in groups_of_like_length([len(ids) for ids in beginnings]):
        own, _ = _read(model, [beginnings[i] for i in group], [visual[first[i]] for i in group])
        for place, i in enumerate(group):
            held |= dict.fromkeys(list(families.values())[i], (own, place))
    begins = {row: len(ids) for (_, ids), rows in families.items() for row in rows}
    members = list(begins)
    for group in groups_of_like_length([len(prompts[row]) for row in members]):
        rows = [members[place] for place in group]
        start = max(begins[row] for row in rows)
        rests = [prompts[row][begins[row] :] for row in rows]
        length = start + max(map(len, rests))
        own = KVCache(model.config.llm, len(rows), length, dtype=model.dtype, device=model.device)
        padding = torch.zeros(len(rows), length, dtype=torch.int64)
        for place, row in enumerate(rows):
            theirs, at = held[row]
            own.write(place, theirs, at, theirs.length - begins[row], begins[row], start)
            padding[place, start - begins[row] : start] = 1
        own.length = start
        ids = _padded(rests, length - start, padding[:, start:]).to(model.device)
        padding = padding.to(model.device)
        positions = (padding.cumsum(1) - 1).clamp(min=0)[:, start:]
        last[rows] = model.hidden(ids, None, padding, positions, own)[:, -1]
        for place, row in enumerate(rows):
            after = len(rests[place])
            cache.write(row, own, place, start - begins[row], begins[row], cache.length - after)
            cache.write(row, own, place, length - after, after, cache.length, clear=False)


def _read(model: InternVL, prompts: Prompts, visual: Sequence[Tensor | None]) -> tuple[KVCache, Tensor]:
    """Whole prompts, padded to the longest: their cache, and (B, hidden) of their last tokens."""
    length = max(map(len, prompts))
    padding = torch.zeros(len(prompts), length, dtype=torch.int64)
    ids = _padded(prompts, length, padding).to(model.device)
    padding = padding.to(model.device)
    positions = (padding.cumsum(1) - 1).clamp(min=0)
    tiles = [tokens for tokens in visual if tokens is not None]
    own = KVCache(model.config.llm, len(prompts), length, dtype=model.dtype, device=model.device)
    hidden = model.hidden(ids, None, padding, positions, own, torch.cat(tiles) if tiles else None)
    return own, hidden[:, -1]


def _padded(prompts: Prompts, length: int, padding: Tensor) -> Tensor:
    """(B, length) ids at the right end; marks them in ``padding`` (B, length)."""
    ids = torch.zeros(len(prompts), length, dtype=torch.int64)
    for place, prompt in enumerate(prompts):
        ids[place, length - len(prompt) :] = torch.tensor(prompt)
        padding[place, length - len(prompt) :] = 1
    return ids


def _by_row(model: InternVL, prompts: Prompts, visual_tokens: Tensor | None) -> list[Tensor | None]:
    """The tiles of each row, counted by its placeholders."""
    counts = [list(prompt).count(model.image_token_id) if model.image_token_id else 0 for prompt in prompts]
    if visual_tokens is None or not len(visual_tokens):
        return [None] * len(prompts)
    each = visual_tokens.shape[1]
    if sum(counts) != each * len(visual_tokens) or any(count % each for count in counts):
        given = each * len(visual_tokens)
        raise TokenCountError(
            f"the prompts hold {sum(counts)} <IMG_CONTEXT> tokens but the images give {given} visual tokens"
        )
    parts = visual_tokens.split([count // each for count in counts])
    return [part if len(part) else None for part in parts]
