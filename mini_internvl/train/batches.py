"""Examples -> batches: padded rows, or one packed row; and their way to the device that trains."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mini_internvl.records import Batch, Example
from mini_internvl.train.independent import PADDING, position_ids
from mini_internvl.train.losses.answers import IGNORE

JOINED = ("input_ids", "labels", "attention_mask", "position_ids")  # what packing joins along the row


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad on the right to the longest; tiles and extras are joined in row order."""
    pad = functools.partial(pad_sequence, batch_first=True)
    ids = [example.input_ids for example in examples]
    segments = [torch.zeros_like(e.input_ids) if e.segment_ids is None else e.segment_ids for e in examples]
    documents = [torch.zeros_like(e.input_ids) if e.document_ids is None else e.document_ids for e in examples]
    positions = [position_ids(row, e.document_ids) for row, e in zip(segments, examples, strict=True)]
    packed = any(example.segment_ids is not None for example in examples)
    divided = any(example.document_ids is not None for example in examples)
    return Batch(
        sample_ids=tuple(example.sample_id for example in examples),
        input_ids=pad(ids, padding_value=pad_id),
        labels=pad([example.labels for example in examples], padding_value=IGNORE),
        attention_mask=pad([torch.ones_like(row) for row in ids]),
        position_ids=pad(positions),
        segment_ids=pad(segments, padding_value=PADDING) if packed else None,
        document_ids=pad(documents, padding_value=PADDING) if divided else None,
        tiles=torch.cat([example.tiles for example in examples]),
        extras={name: torch.cat([example.extras[name] for example in examples]) for name in examples[0].extras},
        **_joined_features(examples),
    )


def _joined_features(examples: Sequence[Example]) -> dict[str, Any]:
    """Images and their kept features, in row order."""
    features = [example.features for example in examples if example.features is not None]
    images = tuple(image for example in examples for image in example.images)
    return {"images": images, "features": torch.cat(features) if features else None}


def micro_batches(examples: Sequence[Example], size: int, pad_id: int = 0) -> list[Batch]:
    """Batches of ``size`` rows, similar lengths together so that little is padded."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    return [collate(ordered[i : i + size], pad_id) for i in range(0, len(ordered), size)]


def packed_batch(examples: Sequence[Example]) -> Batch:
    """One row of all examples, each a document (or the documents) of its own; nothing is padded."""
    counts = [1 if e.document_ids is None else int(e.document_ids[-1]) + 1 for e in examples]
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    rows = [collate([example], 0) for example in examples]
    documents = [
        (torch.zeros_like(row.input_ids) if row.document_ids is None else row.document_ids) + first
        for row, first in zip(rows, firsts, strict=True)
    ]
    segments = [torch.zeros_like(r.input_ids) if r.segment_ids is None else r.segment_ids for r in rows]
    whole: dict[str, Any] = {name: torch.cat([getattr(row, name) for row in rows], dim=1) for name in JOINED}
    return Batch(
        sample_ids=tuple(example.sample_id for example in examples),
        **whole,
        segment_ids=torch.cat(segments, dim=1) if any(r.segment_ids is not None for r in rows) else None,
        document_ids=torch.cat(documents, dim=1) if sum(counts) > 1 else None,
        tiles=torch.cat([example.tiles for example in examples]),
        extras={name: torch.cat([example.extras[name] for example in examples]) for name in examples[0].extras},
        **_joined_features(examples),
    )


def blank_batch(image_size: int) -> Batch:
    """What a process trains on that has nothing left of a step: one token without a label."""
    one = torch.zeros(1, 1, dtype=torch.int64)
    empty = torch.empty(0, image_size, image_size, 3, dtype=torch.uint8)
    return Batch(
        sample_ids=(), input_ids=one, labels=one + IGNORE, attention_mask=one + 1, position_ids=one, tiles=empty
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is, but for what decides shapes, which stays on the CPU: labels, segments and
    documents (see ``losses.answers``, ``model.attention``)."""
    if device.type == "cpu":
        return batch

    def move(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    extras = {name: move(tensor) for name, tensor in batch.extras.items()}
    names = ("input_ids", "attention_mask", "position_ids", "tiles")
    moved: dict[str, Any] = {name: move(getattr(batch, name)) for name in names}
    moved["features"] = None if batch.features is None else move(batch.features)
    return replace(batch, extras=extras, **moved)
