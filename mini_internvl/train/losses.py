"""Losses: modules that take (model, batch) and return a sum; ``count`` says over how many terms, so that steps add up.

``make`` picks the one that a stage names. A loss may have parameters of its own (heads); they train with the stage, are
kept in its state, and are gone after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train.data import IGNORE, supervised_tokens
from mini_internvl.train.patches import PatchLoss


class AnswerLoss(nn.Module):
    """Next-token cross entropy summed over the supervised tokens, float32.

    Logits are computed at supervised positions only, which is where most of the memory of a large vocabulary goes.
    """

    def forward(self, model: InternVL, batch: Batch, visual_tokens: Tensor | None = None) -> Tensor:
        """The sum over the batch's supervised tokens; ``visual_tokens`` stand for the pixels where they are known."""
        hidden = model.hidden(
            batch.input_ids, batch.pixel_values, batch.attention_mask, visual_tokens=visual_tokens, turns=batch.turns
        )
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORE
        logits = model.language_model.lm_head(hidden[:, :-1][supervised])
        return F.cross_entropy(logits.float(), targets[supervised], reduction="sum")

    def count(self, batches: Sequence[Batch]) -> int:
        """Supervised tokens."""
        return supervised_tokens(batches)


ANSWERS = AnswerLoss()


class AnswerAndPatchLoss(nn.Module):
    """The loss on answers, and beside it the weighted loss over patches on the same pass of the encoder.

    While a model measures (``eval()``) it is the loss on answers alone.
    """

    def __init__(self, hidden_size: int, weight: float) -> None:
        super().__init__()
        self.patches, self.weight = PatchLoss(hidden_size), weight

    def forward(self, model: InternVL, batch: Batch) -> Tensor:
        """The weighted sum of both sums."""
        if not model.training or batch.patch_labels is None:
            return ANSWERS(model, batch)
        hidden = model.vision_model(batch.pixel_values, model.config.select_layer)
        answers = ANSWERS(model, batch, model.project(hidden))
        return answers + self.weight * self.patches.over(hidden, batch)

    def count(self, batches: Sequence[Batch]) -> int:
        """Supervised tokens."""
        return supervised_tokens(batches)


Loss = AnswerLoss | PatchLoss | AnswerAndPatchLoss


def make(stage: StageRecipe, model: InternVL) -> Loss:
    """The loss of a stage; its own parameters, if any, are fresh."""
    if stage.loss == "patches":
        return PatchLoss(model.config.vision.hidden_size).to(model.device)
    if stage.patches_weight:
        return AnswerAndPatchLoss(model.config.vision.hidden_size, stage.patches_weight).to(model.device)
    return AnswerLoss()
