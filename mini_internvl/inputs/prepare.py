"""Messages -> tiles and tokens: the one way for training, answering and evaluation.

So an image is cut alike wherever it is seen: its own ``scale`` and ``max_tiles`` count everywhere. What else depends on
the grid, the number of visual tokens and the labels of patches, reads the grid that was cut.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mini_internvl.inputs import chat
from mini_internvl.inputs.hashes import content_hash
from mini_internvl.inputs.images import image_dimensions, load_image
from mini_internvl.inputs.messages import ImagePart, Messages, Turn, image_parts, normalise
from mini_internvl.inputs.tiles import TileConfig, count_tiles, split_tiles
from mini_internvl.inputs.tiles import normalise as normalise_tiles
from mini_internvl.inputs.tokenizer import Tokenizer
from mini_internvl.model.config import VLMConfig
from mini_internvl.records import ChatTemplate, Encoded


@dataclass(frozen=True, kw_only=True, eq=False)
class CutImage:
    """An image in tiles."""

    tiles: Tensor  # (N, S, S, 3) uint8, row by row; ``tiles.normalise`` makes pixel values of them
    grid: tuple[int, int]  # columns and rows

    @property
    def thumbnail(self) -> bool:
        """Whether the whole image follows as the last tile."""
        return len(self.tiles) > self.grid[0] * self.grid[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """A conversation as the model reads it."""

    input_ids: list[int]  # token ids; after a question the assistant's turn is open
    pixel_values: Tensor  # (tiles of all images, 3, S, S) float32, normalised
    tiles: tuple[int, ...]  # tiles of each image, thumbnails counted
    image_keys: tuple[str, ...] = ()  # stands for the content of each image's tiles
    turns: tuple[Turn, ...] = ()  # the conversation itself
    visual: Tensor | None = None  # (visual tokens, 1, LLM hidden) where they are read already
    visual_key: str = ""  # stands for their content; left empty, they are told apart by their values
    saved: int = 0  # placeholders left out, by a router or a reduction


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Cuts and encodes messages for one model."""

    tokenizer: Tokenizer
    template: ChatTemplate
    config: VLMConfig
    system_message: str | None = None  # replaces the template's own when not ``None``
    fast: bool = False  # resize with torch, equal within 1/255

    def cut(self, messages: Messages, *, max_tiles: int | None = None) -> list[CutImage]:
        """Images in tiles: at most ``max_tiles`` for all together, thumbnails not counted; ``None`` for the model's.

        ChatError or ImageError when the messages are malformed, or an image cannot be used.
        """
        return [cut_image(part, tiles) for part, tiles in self.cuts(messages, max_tiles)]

    def prepare(
        self, messages: Messages, *, max_tiles: int | None = None, shared: dict[Any, Any] | None = None
    ) -> Prompt:
        """Ids and pixel values of a conversation; arguments and errors are those of :meth:`cut`.

        ``shared`` keeps what was cut, so that conversations about the same images get one and the same tensor.
        """
        turns = normalise(messages)
        limits = self.cuts(turns, max_tiles)
        key = tuple((_name(part.source), part.scale, tiles) for part, tiles in limits)
        shared = {} if shared is None else shared
        if key not in shared:
            images = [cut_image(part, tiles) for part, tiles in limits]
            empty = torch.empty(0, self.config.image_size, self.config.image_size, 3, dtype=torch.uint8)
            whole = torch.cat([empty, *(image.tiles for image in images)])
            keys = tuple(content_hash(image.tiles.numpy()) for image in images)
            shared[key] = normalise_tiles(whole, self.fast), tuple(len(image.tiles) for image in images), keys
        pixel_values, tiles, keys = shared[key]
        ids = self.encode(turns, tiles).input_ids
        return Prompt(input_ids=ids, pixel_values=pixel_values, tiles=tiles, image_keys=keys, turns=turns)

    def encode(self, messages: Messages, tiles: Sequence[int]) -> Encoded:
        """Token ids and labels of a conversation whose images have so many tiles; see :func:`chat.encode`."""
        return chat.encode(
            messages,
            self.tokenizer,
            template=self.template,
            tiles=tiles,
            tokens_per_tile=self.config.tokens_per_tile,
            system_message=self.system_message,
        )

    def count(self, messages: Messages, tiles: Sequence[int]) -> tuple[int, int]:
        """How many tokens, and supervised ones, :meth:`encode` gives."""
        return chat.count(
            messages,
            self.tokenizer,
            template=self.template,
            tiles=tiles,
            tokens_per_tile=self.config.tokens_per_tile,
            system_message=self.system_message,
        )

    def tile_counts(self, messages: Messages, *, max_tiles: int | None = None) -> list[int]:
        """Tiles of each image that :meth:`cut` would give, from headers alone; the same errors, but for damage."""
        limits = self.cuts(messages, max_tiles)
        return [count_tiles(*image_dimensions(part.source, scale=part.scale), tiles) for part, tiles in limits]

    def count_tiles(self, messages: Messages, *, max_tiles: int | None = None) -> int:
        """Those of all images together."""
        return sum(self.tile_counts(messages, max_tiles=max_tiles))

    def image_limits(self, messages: Messages, *, max_tiles: int | None = None) -> list[int]:
        """Most tiles of each image's grid, as :meth:`cut` has it."""
        return [tiles.max_tiles for _, tiles in self.cuts(messages, max_tiles)]

    def cuts(self, messages: Messages, max_tiles: int | None) -> list[tuple[ImagePart, TileConfig]]:
        """Each image with how :meth:`cut` cuts it."""
        if max_tiles is not None and max_tiles < 1:
            raise ValueError(f"max_tiles is {max_tiles}; it must be at least 1")
        parts = image_parts(messages)
        images = sum(not part.is_frame for part in parts)  # frames have a limit of their own
        shared = chat.tile_limits(images, max_tiles or self.config.max_tiles)
        return [(part, self._tiles(part.max_tiles or shared)) for part in parts]

    def _tiles(self, limit: int) -> TileConfig:
        config = self.config
        return _tile_config(config.image_size, min(config.min_tiles, limit), limit, config.use_thumbnail, self.fast)


@functools.lru_cache(maxsize=256)
def _tile_config(image_size: int, min_tiles: int, max_tiles: int, use_thumbnail: bool, fast: bool) -> TileConfig:
    return TileConfig(
        image_size=image_size, min_tiles=min_tiles, max_tiles=max_tiles, use_thumbnail=use_thumbnail, fast=fast
    )


def cut_image(part: ImagePart, tiles: TileConfig) -> CutImage:
    """One image in tiles; ImageError when it cannot be used."""
    image = load_image(part.source, scale=part.scale)
    return CutImage(tiles=torch.from_numpy(split_tiles(image, tiles)), grid=tiles.grid(image.width, image.height))


def _name(source: Any) -> Any:
    """Tells an image from others as long as it exists."""
    return source if isinstance(source, Hashable) else id(source)
