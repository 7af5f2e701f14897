"""Losses: modules that take (model, batch) and return a sum; ``count`` is what the sums of a step are divided by.

``make`` picks the one that a stage names. A loss may have parameters of its own (heads); they train with the stage, are
kept in its state, and are gone after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train.data import IGNORE
from mini_internvl.train.patches import PatchLoss

POWERS = {"token": 0.0, "square": -0.5, "sample": -1.0}
"""What the length of an answer is raised to, for the weight of its tokens."""


class AnswerLoss(nn.Module):
    """Next-token cross entropy, float32, summed over the supervised tokens with the weights of :func:`token_weights`.

    Logits are computed at supervised positions only, which is where most of the memory of a large vocabulary goes.
    """

    def __init__(self, reduction: str = "token") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, model: InternVL, batch: Batch, visual_tokens: Tensor | None = None) -> Tensor:
        """The sum over the batch's supervised tokens; ``visual_tokens`` stand for the pixels where they are known."""
        hidden = model.hidden(
            batch.input_ids,
            batch.pixel_values,
            position_ids=batch.position_ids,
            visual_tokens=visual_tokens,
            segment_ids=batch.segment_ids,
            document_ids=batch.document_ids,
        )  # no mask: padding stands on the right, where causal attention does not look
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORE
        logits = model.language_model.lm_head(hidden[:, :-1][supervised])
        each = F.cross_entropy(logits.float(), targets[supervised], reduction="none")
        return (each * token_weights(batch, self.reduction)).sum()

    def count(self, batches: Sequence[Batch]) -> float:
        """Sum of the weights: the number of supervised tokens where each weighs 1."""
        return sum(float(token_weights(batch, self.reduction).sum()) for batch in batches)


def token_weights(batch: Batch, reduction: str) -> Tensor:
    """Weight of each supervised token, in the order of ``labels[:, 1:]``, computed from x, the number of supervised
    tokens in the same document, or in the same segment of independent questions.

    ``token`` gives 1, ``sample`` 1/x, so that all documents (or questions) count the same, ``square`` 1/sqrt(x),
    between the two: ``loss_reduction`` of the official packed data set (``internvl/train/dataset_packed.py``).

    Returns:
        (supervised tokens,) float32.
    """
    supervised = batch.labels[:, 1:] != IGNORE
    rows = torch.arange(len(supervised), device=supervised.device)[:, None].expand_as(supervised)[supervised]
    own = [ids[:, 1:][supervised] for ids in (batch.document_ids, batch.segment_ids) if ids is not None]
    _, answer, lengths = torch.stack([rows, *own]).unique(dim=1, return_inverse=True, return_counts=True)
    return lengths[answer].float() ** POWERS[reduction]


ANSWERS = AnswerLoss()


class AnswerAndPatchLoss(nn.Module):
    """The loss on answers, and beside it the weighted loss over patches on the same pass of the encoder.

    Both sums are divided by the count of the answers, so the patches weigh the more, the less the answers' tokens do.

    While a model measures (``eval()``) it is the loss on answers alone.
    """

    def __init__(self, hidden_size: int, weight: float, reduction: str = "token") -> None:
        super().__init__()
        self.answers, self.patches, self.weight = AnswerLoss(reduction), PatchLoss(hidden_size), weight

    def forward(self, model: InternVL, batch: Batch) -> Tensor:
        """The weighted sum of both sums."""
        if not model.training or batch.patch_labels is None:
            return self.answers(model, batch)
        hidden = model.vision_model(batch.pixel_values, model.config.select_layer)
        answers = self.answers(model, batch, model.project(hidden))
        return answers + self.weight * self.patches.over(hidden, batch)

    def count(self, batches: Sequence[Batch]) -> float:
        """Sum of the weights of the loss on answers."""
        return self.answers.count(batches)


Loss = AnswerLoss | PatchLoss | AnswerAndPatchLoss


def make(stage: StageRecipe, model: InternVL) -> Loss:
    """The loss of a stage; its own parameters, if any, are fresh."""
    if stage.loss == "patches":
        return PatchLoss(model.config.vision.hidden_size).to(model.device)
    if stage.patches_weight:
        size = model.config.vision.hidden_size
        return AnswerAndPatchLoss(size, stage.patches_weight, stage.loss_reduction).to(model.device)
    return AnswerLoss(stage.loss_reduction)
