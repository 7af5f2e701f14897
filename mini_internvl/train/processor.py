"""Sample -> Example: what one model reads of a sample, images cut and text in tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_internvl.data import DataError
from mini_internvl.inputs import chat
from mini_internvl.inputs.messages import normalise
from mini_internvl.inputs.prepare import CutImage, Processor
from mini_internvl.records import Example, Sample
from mini_internvl.train.independent import join, split_questions
from mini_internvl.train.losses.answers import IGNORE


@dataclass(frozen=True, kw_only=True)
class SampleProcessor:
    """Sample -> Example for one model; ``max_tiles`` are shared by the images of a sample."""

    processor: Processor
    max_tiles: int
    max_length: int
    """Longest sample in tokens, all its questions together."""
    targets: Callable[[Sample, Sequence[CutImage]], Mapping[str, Tensor]] = lambda sample, images: {}
    """Makes the extras that the stage's losses want."""

    def __call__(self, sample: Sample) -> Example:
        """Render images and text; DataError names the sample and what is wrong."""
        name = f"{sample.source}/{sample.id}"
        try:
            messages = normalise(sample.messages)
            images = self.processor.cut(messages, max_tiles=sample.max_tiles or self.max_tiles)
            counts = [len(image.tiles) for image in images]
            conversations = split_questions(messages) if sample.independent else [messages]
            pieces = [self.processor.encode(conversation, counts) for conversation in conversations]
            encoded, segments, documents = pieces[0], None, [0]
            if len(pieces) > 1:
                context = self.processor.tokenizer.token_id(chat.IMAGE_CONTEXT)
                encoded, segments, documents = join(pieces, context, self.processor.config.llm.rope)
            extras = self.targets(sample, images)
            if all(label == IGNORE for label in encoded.labels):
                raise ValueError("no token is supervised; end it with an answer")
            if len(encoded.input_ids) > self.max_length:
                raise ValueError(
                    f"it has {len(encoded.input_ids)} tokens, more than max_length {self.max_length}; raise max_length "
                    "or lower max_tiles"
                )
        except (ValueError, OSError) as error:
            raise DataError(f"{f'{sample.place}, ' if sample.place else ''}sample {name}: {error}") from error
        size, copies = self.processor.config.image_size, documents[-1] + 1  # each document reads the images
        tiles = [image.tiles for image in images] * copies
        return Example(
            sample_id=name,
            input_ids=torch.tensor(encoded.input_ids),
            labels=torch.tensor(encoded.labels),
            tiles=torch.cat([torch.empty(0, size, size, 3, dtype=torch.uint8), *tiles]),
            extras={name: torch.cat([extra] * copies) for name, extra in extras.items()},
            segment_ids=None if segments is None else torch.tensor(segments),
            document_ids=torch.tensor(documents) if copies > 1 else None,
        )
