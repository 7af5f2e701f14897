"""Losses: each takes (model, batch) and returns the sum over supervised tokens, so that any split of a step adds up."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mini_internvl.model.vlm import InternVL
from mini_internvl.records import Batch
from mini_internvl.train.data import IGNORE


def cross_entropy(model: InternVL, batch: Batch) -> Tensor:
    """Next-token cross entropy summed over the supervised tokens, float32.

    Logits are computed at supervised positions only, which is where most of the memory of a large vocabulary goes.
    """
    hidden = model.hidden(batch.input_ids, batch.pixel_values, batch.attention_mask)
    targets = batch.labels[:, 1:]
    supervised = targets != IGNORE
    logits = model.language_model.lm_head(hidden[:, :-1][supervised])
    return F.cross_entropy(logits.float(), targets[supervised], reduction="sum")
