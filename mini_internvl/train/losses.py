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

    def forward(self, model: InternVL, batch: Batch) -> Tensor:
        """The sum over the batch's supervised tokens."""
        hidden = model.hidden(batch.input_ids, batch.pixel_values, batch.attention_mask)
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORE
        logits = model.language_model.lm_head(hidden[:, :-1][supervised])
        return F.cross_entropy(logits.float(), targets[supervised], reduction="sum")

    def count(self, batches: Sequence[Batch]) -> int:
        """Supervised tokens."""
        return supervised_tokens(batches)


ANSWERS = AnswerLoss()


Loss = AnswerLoss | PatchLoss


def make(stage: StageRecipe, model: InternVL) -> Loss:
    """The loss of a stage; its own parameters, if any, are fresh."""
    if stage.loss == "patches":
        return PatchLoss(model.config.vision.hidden_size).to(model.device)
    return AnswerLoss()
