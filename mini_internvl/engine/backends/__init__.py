"""What computes for the engine: one file is one back end, found by its name (``torch``, ``openvino``).

The scheduler decides what is computed when; a back end only computes, and holds keys and values. It knows no messages,
no tokenizer and no sampling. It is called by one thread at a time, which need not be the same thread each time; only
``encode`` may be called beside anything else, and by several threads.

A slot is a growing row of tokens with their keys and values. A slot is opened with all the room that it may need, so
that whatever was opened can go on to its end. One forward may mix chunks of prompts with single tokens of answers.

A file here defines ``load`` and ``missing`` (see CONTRACT). Importing it needs none of its optional packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mini_internvl.model.config import VLMConfig

CONTRACT = ("load", "missing")
"""``load(folder, *, dtype="auto", device="auto") -> Backend``: from a checkpoint folder of any layout; ValueError says
why it cannot. ``missing() -> str``: why this computer cannot use it, with the install line; empty where it can."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tokens that follow what a slot holds: a chunk of its prompt, or the last token of its answer so far."""

    slot: int
    ids: Sequence[int]  # at least one
    prompt_length: int
    """Tokens of the whole prompt, on which the rotation of keys may depend."""
    visual: Tensor | None = None
    """(placeholders among the ids, hidden) visual tokens in their order; ``None`` where each id is a text token, also
    an ``<IMG_CONTEXT>`` that the model wrote itself."""


class Backend(Protocol):
    """What the scheduler asks of a back end.

    Slots are numbers of the back end's choice; a closed one's number may come again.
    """

    @property
    def config(self) -> VLMConfig:
        """The model's; ``config.image_token_id`` is the id of the placeholder."""
        ...

    @property
    def arithmetic(self) -> str:
        """What answers depend on besides weights and prompt, such as "torch cpu float32"; part of cache keys."""
        ...

    def encode(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) float32 normalised tiles -> (N, tokens per tile, LLM hidden) visual tokens."""
        ...

    def open(self, most_tokens: int) -> int:
        """A new empty slot with room for so many tokens, also where that is more than :meth:`free_tokens`."""
        ...

    def fork(self, slot: int, count: int, most_tokens: int) -> int:
        """A new slot that begins with the first ``count`` tokens of another, which stays as it is."""
        ...

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """Read each piece behind what its slot holds: (B, V) float32 logits on the CPU or the device, for the last
        token of each of B pieces, in their order.

        Each slot occurs once. A piece gets the logits that it would get alone, but for rounding. When an error is
        raised the slots hold what they held before.
        """
        ...

    def close(self, slot: int) -> None:
        """Give a slot's memory back."""
        ...

    def free_tokens(self) -> int:
        """Tokens that further slots may have under the memory budget; below 0 where one slot alone exceeds it."""
        ...
