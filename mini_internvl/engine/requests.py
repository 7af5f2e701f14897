"""A request, and its ticket: how far it is read, and what of its answer nobody has taken yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mini_internvl.engine.images import ImageInput
from mini_internvl.engine.sampling import GenerationConfig, Matcher, Sampler, Step
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.vlm import TokenCountError


class Text(Protocol):
    """What makes text of an answer's tokens; see :class:`mini_internvl.engine.text.TextStream`."""

    def push(self, token: int) -> tuple[str, bool]: ...

    def finish(self) -> str: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One prompt to answer; the assistant's turn is open, and images stand where the placeholders are."""

    ids: Sequence[int]
    config: GenerationConfig
    stop_ids: frozenset[int]
    images: Sequence[ImageInput] = ()  # in reading order
    text: Text | None = None
    matcher: Matcher | None = None


@dataclass(eq=False, kw_only=True)
class Ticket:
    """A request under way, and its steps that nobody has taken yet."""

    request: Request
    key: np.ndarray  # (tokens,) ids; a placeholder is a negative number that stands for its image's content
    most: int  # tokens of prompt and longest answer
    places: np.ndarray  # of the placeholders
    ends: list[int]  # of each image: placeholders up to and including its own
    sampler: Sampler
    steps: deque[Step] = field(default_factory=deque)
    slot: int | None = None
    read: int = 0  # tokens that the slot holds
    answer: list[int] = field(default_factory=list)
    visual: dict[int, Tensor] = field(default_factory=dict)  # (placeholders, hidden) of images to be read, by number
    cancelled: bool = False
    ended: bool = False
    error: BaseException | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.key)

    @property
    def reading(self) -> bool:
        return self.read < self.length

    def unread_images(self) -> Iterator[int]:
        """Numbers of the images of which something is still to be read."""
        done = int(np.searchsorted(self.places, self.read))
        return (number for number, end in enumerate(self.ends) if end > done)

    def readable(self) -> int:
        """How far the prompt can be read: up to the first image that is not encoded."""
        missing = next((number for number in self.unread_images() if number not in self.visual), None)
        if missing is None:
            return self.length
        return int(self.places[self.ends[missing - 1] if missing else 0])

    def visual_until(self, end: int) -> Tensor | None:
        """(placeholders, hidden) visual tokens between what is read and ``end``."""
        first, last = np.searchsorted(self.places, (self.read, end))
        rows = []
        for number, behind in enumerate(self.ends):
            start = self.ends[number - 1] if number else 0
            if start < last and behind > first:
                rows.append(self.visual[number][max(0, first - start) : last - start])
        return torch.cat(rows) if rows else None


def make_ticket(request: Request, config: VLMConfig) -> Ticket:
    """ValueError when the prompt fills the context; TokenCountError when images and placeholders differ."""
    key = np.array(request.ids, np.int64)
    counts = [image.placeholders(config.tokens_per_tile) for image in request.images]
    places = np.flatnonzero(key == config.image_token_id) if config.image_token_id is not None else np.array([], int)
    if len(places) != sum(counts):
        raise TokenCountError(
            f"the prompt holds {len(places)} <IMG_CONTEXT> tokens but the images give {sum(counts)} visual tokens"
        )
    numbers = [-1 - int.from_bytes(sha256(one.key.encode()).digest()[:7], "big") for one in request.images]
    key[places] = np.repeat(np.array(numbers, np.int64), counts)
    context = config.llm.rope.context_length
    if len(key) >= context:
        raise ValueError(f"the prompt has {len(key)} tokens, but the model has {context} positions")
    return Ticket(
        request=request,
        key=key,
        most=min(len(key) + request.config.max_new_tokens, context),
        places=places,
        ends=list(accumulate(counts)),
        sampler=Sampler(request.config, request.ids, matcher=request.matcher),
    )


def common(first: np.ndarray, second: np.ndarray) -> int:
    """With how many equal entries two rows begin."""
    most = min(len(first), len(second))
    if not most or first[0] != second[0]:
        return 0
    differing = first[:most] != second[:most]
    place = int(differing.argmax())
    return place if differing[place] else most
