"""Visual tokens of images: encoded a few tiles at a time, each image once, and kept for later requests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_internvl.engine.backends import Backend
from mini_internvl.inputs.hashes import content_hash
from mini_internvl.inputs.prepare import Prompt


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageInput:
    """What stands for a run of placeholders of a prompt: tiles, or visual tokens that are made already."""

    key: str
    """Stands for the content: images with equal keys have equal visual tokens."""
    pixel_values: Tensor | None = None  # (tiles, 3, S, S)
    visual: Tensor | None = None  # (placeholders, hidden)

    def __post_init__(self) -> None:
        assert (self.pixel_values is None) != (self.visual is None), "tiles or visual tokens"

    @property
    def tiles(self) -> int:
        """Tiles that are to be encoded."""
        return 0 if self.pixel_values is None else len(self.pixel_values)

    def placeholders(self, tokens_per_tile: int) -> int:
        """How many ids of a prompt it stands for."""
        return self.tiles * tokens_per_tile if self.visual is None else len(self.visual)


def image_keys(prompt: Prompt) -> tuple[str, ...]:
    """What stands for the content of each image of a prompt, also where it was made by hand."""
    pixels = prompt.pixel_values.split(list(prompt.tiles)) if prompt.tiles else ()
    return prompt.image_keys or tuple(content_hash(own.float().cpu().numpy()) for own in pixels)


class ImageCache:
    """Encodes images with a back end; keeps up to ``most_bytes`` of visual tokens, those used last."""

    def __init__(self, backend: Backend, most_bytes: int) -> None:
        self._backend, self._most_bytes = backend, most_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._partial: dict[str, list[Tensor]] = {}

    def find(self, image: ImageInput) -> Tensor | None:
        """(placeholders, hidden) visual tokens of a image, if they are there."""
        if image.visual is not None:
            return image.visual
        if image.key in self._kept:
            self._kept.move_to_end(image.key)
        return self._kept.get(image.key)

    def encode(self, wanted: Iterable[ImageInput], most: int) -> dict[str, Tensor]:
        """Encode up to ``most`` tiles of images, the first ones first; the visual tokens of those that are done."""
        places: list[tuple[ImageInput, Tensor]] = []
        begun: dict[str, int] = {}
        for image in wanted:
            if most <= 0:
                break
            if image.key in begun or image.pixel_values is None:
                continue
            start = sum(map(len, self._partial.get(image.key, ())))
            part = image.pixel_values[start : start + most]
            begun[image.key] = start
            places.append((image, part))
            most -= len(part)
        if not places:
            return {}
        tokens = self._backend.encode(torch.cat([part for _, part in places]))
        done: dict[str, Tensor] = {}
        for (image, _), own in zip(places, tokens.split([len(part) for _, part in places]), strict=True):
            parts = self._partial.setdefault(image.key, [])
            parts.append(own)
            if sum(map(len, parts)) == image.tiles:
                done[image.key] = torch.cat(self._partial.pop(image.key)).flatten(0, 1)
        for key, visual in done.items():
            self._kept[key] = visual
        while sum(visual.nbytes for visual in self._kept.values()) > self._most_bytes:
            self._kept.popitem(last=False)
        return done

    def drop_partial(self, wanted: Iterable[ImageInput]) -> None:
        """Drop what is encoded in part, but for images that are still wanted."""
        if self._partial:
            keys = {image.key for image in wanted}
            self._partial = {key: parts for key, parts in self._partial.items() if key in keys}

    def forget(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self._partial.clear()
