"""What the losses share that train a Flash model: tiles with few tokens, the batch that remains, and how far answers
then are from those of a reference.

A batch is laid out for tiles with all their tokens. Where some get few, their other placeholders leave its rows: what
stays moves to the left, positions count on without gaps, and rows end with padding, which nothing sees.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_internvl.model.attention import has_values
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.flash import kept_places
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import RecipeError, StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train.independent import PADDING
from mini_internvl.train.learner import tile_count
from mini_internvl.train.losses.answers import IGNORE, in_chunks, supervised_states
from mini_internvl.train.losses.heads import batch_documents


def check_own_reference(loss: str, reference: str, stage: StageRecipe) -> None:
    """RecipeError where the model is its own reference though it changes, or pictures are not there for another."""
    changes = [part for part in stage.train if part in ("vision", "projector", "llm")]
    if changes and not reference:
        raise RecipeError(
            f"stage {stage.name}: {', '.join(changes)} trains, so the model cannot be its own reference; write "
            f"{loss}.reference, the checkpoint that the run begins with"
        )
    if reference and stage.cache:
        raise RecipeError(f"stage {stage.name}: {loss}.reference reads every picture, so leave cache out")


def check_flash(loss: str, config: VLMConfig) -> None:
    """RecipeError for a model without a router."""
    if config.flash is None:
        raise RecipeError(f"loss {loss} is of a Flash model; give this one a router: router: {{}} in the recipe")


def tile_documents(batch: Batch, model: InternVL) -> Tensor:
    """(tiles,) the document of each tile, counted over all rows; int64, on the CPU.

    An accelerator is waited for here. Without values, each tile is taken for one of another document.
    """
    documents, count = batch_documents(batch)
    if not has_values(batch.input_ids):
        return torch.arange(tile_count(batch)).clamp(max=max(0, count - 1))
    assert model.image_token_id is not None, "a batch with tiles has their token"
    seen = torch.eq(batch.input_ids.cpu(), model.image_token_id).flatten()
    return documents.flatten()[seen][:: model.config.tokens_per_tile]


def shortened(batch: Batch, short: Tensor, model: InternVL) -> Batch:
    """The batch without the placeholders that tiles with few tokens, (tiles,) ``short``, do not need.

    Images stand in segment 0. Without values, the batch itself.
    """
    if not has_values(batch.input_ids) or not bool(short.any()):
        return batch
    assert model.image_token_id is not None, "a batch with tiles has their token"
    config, device = model.config, batch.input_ids.device
    ids, real = batch.input_ids.cpu(), batch.attention_mask.cpu().bool()
    kept = real & kept_places(ids, model.image_token_id, config.tokens_per_tile, config.short_tokens, short)
    order = (~kept).byte().argsort(dim=1, stable=True)[:, : int(kept.sum(1).max())]
    stays = kept.gather(1, order)

    def moved(values: Tensor, padding: int) -> Tensor:
        return values.cpu().gather(1, order).where(stays, padding)

    segments, documents = (
        None if part is None else moved(part, PADDING) for part in (batch.segment_ids, batch.document_ids)
    )
    positions = batch.position_ids.cpu() - _removed_before(real & ~kept, batch.document_ids)
    return replace(
        batch,
        input_ids=moved(ids, 0).to(device),
        labels=moved(batch.labels, IGNORE),
        attention_mask=stays.long().to(device),
        position_ids=moved(positions, 0).to(device),
        segment_ids=segments,
        document_ids=documents,
    )


def _removed_before(removed: Tensor, document_ids: Tensor | None) -> Tensor:
    """(B, T) how many tokens of the same document are removed before each token."""
    before = removed.cumsum(1) - removed.long()
    if document_ids is None:
        return before
    begins = torch.ones_like(removed)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return before - (before * begins).cummax(1).values


def states_of(model: InternVL, batch: Batch, visual_tokens: Tensor | None) -> Tensor:
    """(n, hidden) final states from which the supervised tokens are predicted."""
    (hidden,) = model.states(
        batch.input_ids,
        [len(model.language_model.layers)],
        visual_tokens=visual_tokens,
        position_ids=batch.position_ids,
        segment_ids=batch.segment_ids,
        document_ids=batch.document_ids,
    )
    return supervised_states(hidden, batch)


def divergences(wanted: Tensor, wanted_head: nn.Module, found: Tensor, head: Any) -> Tensor:
    """KL(reference || model) of the next token at each of n places, in nats; float32.

    From (n, hidden) states and output matrices of both; no gradient flows to the reference.
    """
    both = functools.partial(_divergences, wanted_head, head)
    return torch.cat(in_chunks(both, wanted, found, rows=2 * head.out_features))


def _divergences(wanted_head: nn.Module, head: nn.Module, wanted: Tensor, found: Tensor) -> Tensor:
    with torch.no_grad():
        goal = F.log_softmax(wanted_head(wanted).float(), -1)
    return F.kl_div(F.log_softmax(head(found).float(), -1), goal, log_target=True, reduction="none").sum(-1)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Inside, the model drops nothing and keeps no gradients."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
