"""Sample -> Example for an encoder alone: one picture, resized to one tile, and no tokens.

The example has one place for a token, without a label, so that whatever counts or pads rows takes it as one of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_internvl.data import DataError
from mini_internvl.inputs.images import image_dimensions
from mini_internvl.inputs.messages import ImagePart, image_parts
from mini_internvl.inputs.prepare import CutImage, cut_image
from mini_internvl.inputs.tiles import TileConfig
from mini_internvl.model.config import VLMConfig
from mini_internvl.records import Example, NamedImage, Sample, Size
from mini_internvl.train.kept import KeptFeatures
from mini_internvl.train.losses.answers import IGNORE
from mini_internvl.train.processor import no_targets


@dataclass(frozen=True, kw_only=True)
class PictureProcessor:
    """Makes pictures into examples for one encoder; dynamic resolution is off."""

    config: VLMConfig
    targets: Callable[[Sample, Sequence[CutImage]], Mapping[str, Tensor]] = no_targets
    """Makes the extras that the stage's losses want."""
    features: KeptFeatures | None = None
    """Kept features of the teacher, where the stage keeps them."""

    def __call__(self, sample: Sample) -> Example:
        """Cut the sample's one picture; DataError names the sample and what is wrong."""
        try:
            (part,) = image_parts(sample.messages)
            image = whole_picture(part, self.config.image_size)
            extras = self.targets(sample, [image])
        except (ValueError, OSError) as error:
            raise _named(sample, error) from error
        kept, named = None, list[NamedImage]()
        if self.features is not None:
            key = self.features.pixels_key(image.tiles)
            kept = self.features.load(key, 1)
            named.append(NamedImage(key=key, tiles=1, kept=kept is not None))
        return Example(
            sample_id=f"{sample.source}/{sample.id}",
            input_ids=torch.zeros(1, dtype=torch.int64),
            labels=torch.full((1,), IGNORE),
            tiles=image.tiles,
            extras=extras,
            images=tuple(named),
            features=kept,
        )

    def measure(self, sample: Sample) -> Size:
        """Its pictures as tiles, from their headers; a sample without one is of no use, but no fault."""
        try:
            parts = image_parts(sample.messages)
            for part in parts:
                image_dimensions(part.source, scale=part.scale)
        except (ValueError, OSError) as error:
            raise _named(sample, error) from error
        return Size(tokens=1, supervised=0, tiles=len(parts))

    @property
    def fingerprint(self) -> str:
        """Of all that decides the sizes of samples."""
        return hashlib.blake2b(json.dumps(["pictures", 1]).encode(), digest_size=16).hexdigest()


def whole_picture(part: ImagePart, size: int) -> CutImage:
    """A picture resized to one square tile; ImageError when it cannot be used."""
    return cut_image(part, TileConfig(image_size=size, min_tiles=1, max_tiles=1, use_thumbnail=False))


def _named(sample: Sample, error: Exception) -> DataError:
    return DataError(f"{f'{sample.place}, ' if sample.place else ''}sample {sample.source}/{sample.id}: {error}")
