"""The loss on answers: next-token cross entropy over the supervised tokens.

Logits are computed at supervised positions only, where most of the memory of a large vocabulary goes, and of a long row
in chunks: each chunk's logits are gone when its loss is summed, and made again in the backward pass. Labels stay on the
CPU: how many are supervised decides shapes, for which a GPU would have to be waited for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mini_internvl.model.config import VLMConfig
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import LossSettings, RecipeError
from mini_internvl.records import Batch
from mini_internvl.train.learner import Features

IGNORE = -100
CHUNK_BYTES = 2**28  # of the float32 logits that are held at once; their gradient takes as much again
REACHES = ("vision", "projector", "llm")
POWERS = {"token": 0.0, "square": -0.5, "sample": -1.0}
"""What the length of an answer is raised to, for the weight of its tokens."""


@dataclass(frozen=True, kw_only=True)
class Settings(LossSettings):
    """Settings of the loss on answers."""

    reduction: str = "token"
    """How a token weighs among x supervised ones of its row, or of its question where they are independent: ``token``
    1, ``square`` 1/sqrt(x), ``sample`` 1/x; the last two keep long answers from drowning the short ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction not in POWERS:
            raise RecipeError(f'answers.reduction is "{self.reduction}"; known: {", ".join(POWERS)}')


class Loss(nn.Module):
    """Cross entropy in float32, summed with the weights of :func:`token_weights`."""

    def __init__(self, settings: Settings, config: VLMConfig) -> None:
        super().__init__()
        self.reduction = settings.reduction
        self.layers = None  # all blocks

    def forward(self, model: InternVL, batch: Batch, images: Features) -> Tensor:
        """The sum over the batch's supervised tokens."""
        labels = batch.labels[:, 1:]
        states = supervised_states(images.hidden(), batch)
        wanted = labels[labels != IGNORE].to(states.device, non_blocking=True)
        weights = token_weights(batch, self.reduction).to(states.device, non_blocking=True)
        head = model.language_model.lm_head
        found = in_chunks(functools.partial(_summed, head), states, wanted, weights, rows=head.out_features)
        return torch.stack(found).sum()

    def count(self, batch: Batch) -> float:
        """Sum of the weights: the number of supervised tokens where each weighs 1."""
        return float(token_weights(batch, self.reduction).sum())


def supervised_states(hidden: Tensor, batch: Batch) -> Tensor:
    """(B, T, hidden) -> (n, hidden): those from which the batch's supervised tokens are predicted, in their order."""
    row, place = (batch.labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    flat = (row * hidden.shape[1] + place).to(hidden.device, non_blocking=True)
    return hidden.flatten(0, 1).index_select(0, flat)


def in_chunks(function: Callable[..., Tensor], *parts: Tensor, rows: int) -> list[Tensor]:
    """``function`` of tensors that begin with the supervised tokens, of so many tokens at a time that their logits, of
    ``rows`` values each, take ``CHUNK_BYTES``."""
    size = max(1, CHUNK_BYTES // (4 * rows))
    if len(parts[0]) <= size:
        return [function(*parts)]
    chunks = zip(*(part.split(size) for part in parts), strict=True)
    return [checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks]


def _summed(head: nn.Module, hidden: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the cross entropies at (n, hidden) positions."""
    return (F.cross_entropy(head(hidden).float(), wanted, reduction="none") * weights).sum()


def token_weights(batch: Batch, reduction: str) -> Tensor:
    """Weight of each supervised token, in the order of ``labels[:, 1:]``, computed from x, the number of supervised
    tokens in the same document, or in the same segment of independent questions.

    ``token`` gives 1, ``sample`` 1/x, so that all documents (or questions) count the same, ``square`` 1/sqrt(x),
    between the two: ``loss_reduction`` of the official packed data set (``internvl/train/dataset_packed.py``). Float32.
    """
    supervised = batch.labels[:, 1:] != IGNORE
    rows = torch.arange(len(supervised))[:, None].expand_as(supervised)[supervised]
    own = [ids[:, 1:][supervised] for ids in (batch.document_ids, batch.segment_ids) if ids is not None]
    _, answer, lengths = torch.stack([rows, *own]).unique(dim=1, return_inverse=True, return_counts=True)
    return lengths[answer].float() ** POWERS[reduction]
