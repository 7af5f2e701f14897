"""What the steps of a stage hold: sizes of its samples and its largest micro batch, from a sample of the data.

Where the data or the tokenizer is not there, each sample is taken to be one image of the most tiles with a short text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mini_internvl.model.config import VLMConfig
from mini_internvl.recipes import StageRecipe
from mini_internvl.records import Batch, Example, Size
from mini_internvl.train.batches import micro_batches, packed_batch
from mini_internvl.train.data import MixedDataset, Unusable
from mini_internvl.train.losses.answers import IGNORE

SAMPLED = 64  # samples that are read
TEXT, ANSWER = 256, 64  # assumed tokens of text of a sample, and those of them that are supervised


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a stage has to do."""

    examples: Sequence[Example]  # of the data, or one that stands for all
    source: str  # where the sizes come from, for people

    @property
    def sizes(self) -> list[Size]:
        """Of the examples."""
        return [
            Size(tokens=len(e.input_ids), supervised=int((e.labels[1:] != IGNORE).sum()), tiles=len(e.tiles))
            for e in self.examples
        ]

    def samples_per_step(self, stage: StageRecipe) -> float:
        """About, where the stage packs."""
        if stage.pack is None:
            return stage.batch_size
        sizes = self.sizes
        by_tokens = stage.pack.tokens * len(sizes) / max(1, sum(size.tokens for size in sizes))
        by_tiles = stage.pack.tiles * len(sizes) / max(1, sum(size.tiles for size in sizes))
        return stage.batch_size * max(1.0, min(by_tokens, by_tiles))

    def largest(self, stage: StageRecipe) -> Batch:
        """The micro batch that takes most memory: the longest samples, or a full pack."""
        ordered = sorted(self.examples, key=lambda example: len(example.input_ids))
        if stage.pack is None:
            count = min(stage.micro_batch, stage.batch_size)
            rows = [ordered[-1 - i % len(ordered)] for i in range(count)]
            return micro_batches(rows, count)[0]
        tokens, tiles, rows = stage.pack.tokens, stage.pack.tiles, list[Example]()
        for example in reversed(ordered):
            while len(example.input_ids) <= tokens and len(example.tiles) <= tiles:
                rows.append(example)
                tokens, tiles = tokens - len(example.input_ids), tiles - len(example.tiles)
        return packed_batch(rows or ordered[:1])


def sampled(dataset: MixedDataset) -> Workload:
    """The first samples of a stage; DataError where none can be used."""
    found = [dataset[number] for number in range(min(SAMPLED, len(dataset)))]
    examples = [example for example in found if isinstance(example, Example)]
    if not examples:
        reasons = [str(one) for one in found if isinstance(one, Unusable)]
        raise ValueError(f"none of the first {len(found)} samples can be used: {reasons[0]}")
    return Workload(examples=examples, source=f"of the first {len(examples)} samples")


def assumed(stage: StageRecipe, config: VLMConfig, image_token_id: int) -> Workload:
    """One image of the most tiles and a short text; a thumbnail comes with more than one tile."""
    tiles = stage.max_tiles + (stage.max_tiles > 1 and config.use_thumbnail)
    tiles = min(tiles, max(1, (stage.max_length - TEXT) // config.tokens_per_tile))
    size = Size(tokens=tiles * config.tokens_per_tile + TEXT, supervised=ANSWER, tiles=tiles)
    return Workload(
        examples=[made_example(size, config, image_token_id)],
        source=f"assumed: one image of {tiles} tiles and {TEXT} tokens of text, {ANSWER} of them supervised",
    )


def made_example(size: Size, config: VLMConfig, image_token_id: int) -> Example:
    """An example of a size without content; its tiles take no memory."""
    ids, labels = torch.zeros(size.tokens, dtype=torch.int64), torch.full((size.tokens,), IGNORE)
    ids[: size.tiles * config.tokens_per_tile] = image_token_id
    labels[size.tokens - size.supervised :] = 0
    side = config.image_size
    tiles = torch.empty(size.tiles, side, side, 3, dtype=torch.uint8, device="meta")
    return Example(sample_id="made", input_ids=ids, labels=labels, tiles=tiles)
