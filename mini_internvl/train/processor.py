"""Sample -> Example: what one model reads of a sample, images cut and text in tokens; and its size beforehand.

A sample longer than ``max_length`` is shortened: its images get fewer tiles, as few as one each, and if that is not
enough, whole turns go from its end. No picture and no answer is ever cut in the middle.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mini_internvl.data import DataError
from mini_internvl.inputs import chat
from mini_internvl.inputs.images import image_dimensions
from mini_internvl.inputs.messages import ImagePart, Turn, normalise
from mini_internvl.inputs.prepare import CutImage, Processor, cut_image
from mini_internvl.inputs.questions import split_questions
from mini_internvl.inputs.tiles import count_tiles, shares_shown
from mini_internvl.records import Encoded, Example, NamedImage, Sample, Size
from mini_internvl.train.independent import join
from mini_internvl.train.losses.answers import IGNORE

if TYPE_CHECKING:
    from mini_internvl.train.features import FeatureStore

RULE = 3  # of the sizes, faults and notes that a sample has; raised when the same sample and settings give others


def no_targets(sample: Sample, images: Sequence[CutImage]) -> Mapping[str, Tensor]:
    """Extras where the losses want none."""
    return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """A sample in tokens, its images not cut yet."""

    turns: tuple[Turn, ...]  # after shortening, with the tile limits that images then have
    tiles: list[int]  # of each image
    encoded: Encoded
    segments: list[int] | None  # of each token; ``None`` where all is one conversation
    documents: list[int]  # of each token; one element where all is one document
    shortened: bool = False

    @property
    def copies(self) -> int:
        """Documents, each of which reads the images."""
        return self.documents[-1] + 1


@dataclass(frozen=True, kw_only=True)
class SampleProcessor:
    """Sample -> Example for one model; ``max_tiles`` are shared by the images of a sample."""

    processor: Processor
    max_tiles: int
    max_length: int
    """Longest sample in tokens, all its questions together; a longer one is shortened."""
    targets: Callable[[Sample, Sequence[CutImage]], Mapping[str, Tensor]] = no_targets
    """Makes the extras that the stage's losses want."""
    features: FeatureStore | None = None
    """Kept features of images, where the stage keeps them."""

    def __call__(self, sample: Sample) -> Example:
        """Render images and text; DataError names the sample and what is wrong."""
        try:
            text = self.render(sample)
            images, named, features = self._images(text, sample)
            if [len(image.tiles) for image in images] != text.tiles:
                raise ValueError("an image was changed while it was read; start again")
            extras = self.targets(sample, images)
        except (ValueError, OSError) as error:
            raise _named(sample, error) from error
        size, copies = self.processor.config.image_size, text.copies
        cut = [image.tiles for image, name in zip(images, named, strict=True) if not name.kept]
        return Example(
            sample_id=f"{sample.source}/{sample.id}",
            input_ids=torch.tensor(text.encoded.input_ids),
            labels=torch.tensor(text.encoded.labels),
            tiles=torch.cat([torch.empty(0, size, size, 3, dtype=torch.uint8), *cut * copies]),
            extras={name: torch.cat([extra] * copies) for name, extra in extras.items()},
            segment_ids=None if text.segments is None else torch.tensor(text.segments),
            document_ids=torch.tensor(text.documents) if copies > 1 else None,
            images=named * copies if self.features else (),
            features=torch.cat(features * copies) if features else None,
        )

    def _images(self, text: Text, sample: Sample) -> tuple[list[CutImage], list[NamedImage], list[Tensor]]:
        """A sample's images; those whose features are kept have tiles without content, and are not opened."""
        images, named, loaded = list[CutImage](), list[NamedImage](), list[Tensor]()
        cuts = self.processor.cuts(text.turns, self._limit(sample))
        for count, (part, tiles) in zip(text.tiles, cuts, strict=True):
            grid, key, features = (0, 0), "", None
            if self.features:
                grid = tiles.grid(*image_dimensions(part.source, scale=part.scale))
                key = self.features.key(part.source, part.scale, tiles, grid)
                features = self.features.load(key, count)
            if features is None:
                images.append(cut_image(part, tiles))
            else:
                blank = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
                images.append(CutImage(tiles=blank.expand(count, tiles.image_size, tiles.image_size, 3), grid=grid))
                loaded.append(features)
            named.append(NamedImage(key=key, tiles=len(images[-1].tiles), kept=features is not None))
        return images, named, loaded

    def measure(self, sample: Sample) -> Size:
        """The size of the sample's example, without decoding a whole image; the same errors, but for damage within an
        image and those of the losses."""
        try:
            return self._size(sample)
        except (ValueError, OSError) as error:
            raise _named(sample, error) from error

    def describe(self, sample: Sample) -> str:
        """How the sample's first image is seen, in a line; empty where there is none. ValueError: it is unreadable."""
        for part, tiles in self.processor.cuts(normalise(sample.messages), self._limit(sample))[:1]:
            width, height = image_dimensions(part.source, scale=part.scale)
            count, (shown, one) = count_tiles(width, height, tiles), shares_shown(width, height, tiles)
            tokens = count * self.processor.config.tokens_per_tile
            seen = f"{width} x {height} pixels are {count:,} tile{'s' * (count > 1)}, {tokens:,} visual tokens"
            lost = (
                f"; one fixed tile would lose {100 * (1 - one / shown):.0f} % of what they show" if one < shown else ""
            )
            return seen + lost
        return ""

    def _size(self, sample: Sample) -> Size:
        if not sample.independent:
            turns = normalise(sample.messages)
            tiles = self.processor.tile_counts(turns, max_tiles=self._limit(sample))
            tokens, supervised = self.processor.count(turns, tiles)
            if supervised and tokens <= self.max_length:
                return Size(tokens=tokens, supervised=supervised, tiles=sum(tiles))
        text = self.render(sample)
        labels = text.encoded.labels
        return Size(
            tokens=len(labels),
            supervised=len(labels) - labels.count(IGNORE),
            tiles=sum(text.tiles) * text.copies,
            shortened=text.shortened,
        )

    @property
    def fingerprint(self) -> str:
        """Of all that decides the sizes of samples."""
        processor, config = self.processor, self.processor.config
        facts = {
            "rule": RULE,
            "tokenizer": processor.tokenizer.fingerprint,
            "template": asdict(processor.template),
            "system": processor.system_message,
            "image": (config.image_size, config.tokens_per_tile, config.min_tiles, config.use_thumbnail),
            "limits": (self.max_tiles, self.max_length),
            "rope": repr(config.llm.rope),
        }
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()

    def _limit(self, sample: Sample) -> int:
        return sample.max_tiles or self.max_tiles

    def render(self, sample: Sample) -> Text:
        """The sample in tokens, shortened where it must be; ValueError says what is wrong with it."""
        turns = normalise(sample.messages)
        text = self._encoded(turns, sample)
        if len(text.encoded.labels) > self.max_length:
            text = self._shortened(turns, sample)
        if text.encoded.labels.count(IGNORE) == len(text.encoded.labels):
            raise ValueError("no token is supervised; end it with an answer")
        return text

    def _encoded(self, turns: tuple[Turn, ...], sample: Sample) -> Text:
        tiles = self.processor.tile_counts(turns, max_tiles=self._limit(sample))
        conversations = split_questions(turns) if sample.independent else [turns]
        pieces = [self.processor.encode(conversation, tiles) for conversation in conversations]
        encoded, segments, documents = pieces[0], None, [0]
        if len(pieces) > 1:
            context = self.processor.tokenizer.token_id(chat.IMAGE_CONTEXT)
            encoded, segments, documents = join(pieces, context, self.processor.config.llm.rope)
        return Text(turns=turns, tiles=tiles, encoded=encoded, segments=segments, documents=documents)

    def _shortened(self, turns: tuple[Turn, ...], sample: Sample) -> Text:
        """The sample with as many tiles an image as fit, or with one and as many turns as fit.

        ValueError where its first answer, or its turns up to the last image, are too long alone.
        """

        def length(shorter: tuple[Turn, ...]) -> int:
            return len(self._encoded(shorter, sample).encoded.labels)

        limits = self.processor.image_limits(turns, max_tiles=self._limit(sample))
        if tiles := _most(
            1, max(limits, default=1), lambda most: length(_limited(turns, limits, most)), self.max_length
        ):
            return replace(self._encoded(_limited(turns, limits, tiles), sample), shortened=True)
        turns = _limited(turns, limits, 1)
        least = _least(turns)
        whole = range(least, len(turns), 2)  # numbers of turns that end with an answer
        kept = _most(0, len(whole) - 1, lambda place: length(turns[: whole[place]]), self.max_length) if whole else None
        if kept is None:
            shortest = length(turns[:least])
            raise ValueError(
                f"at its shortest it has {shortest} tokens, more than max_length {self.max_length}; raise max_length "
                "or shorten its text"
            )
        return replace(self._encoded(turns[: whole[kept]], sample), shortened=True)


def _named(sample: Sample, error: Exception) -> DataError:
    return DataError(f"{f'{sample.place}, ' if sample.place else ''}sample {sample.source}/{sample.id}: {error}")


def _most(first: int, last: int, length: Callable[[int], int], limit: int) -> int | None:
    """The largest number from ``first`` to ``last`` with a length of at most ``limit``; lengths grow with numbers."""
    found = bisect.bisect_right(range(first, last + 1), limit, key=length)
    return first + found - 1 if found else None


def _limited(turns: tuple[Turn, ...], limits: Sequence[int], most: int) -> tuple[Turn, ...]:
    """The turns whose images have their own limit in tiles, and at most ``most``."""
    rest = iter(limits)

    def limited(part: str | ImagePart) -> str | ImagePart:
        return part if isinstance(part, str) else replace(part, max_tiles=min(next(rest), most))

    return tuple(replace(turn, parts=tuple(map(limited, turn.parts))) for turn in turns)


def _least(turns: Sequence[Turn]) -> int:
    """How many turns must stay: to the first answer, and to the answer of the last image's question."""
    shown = max((place for place, turn in enumerate(turns) if turn.images), default=0)
    answers = (place for place, turn in enumerate(turns) if turn.role == "assistant" and place > shown)
    return 1 + next(answers, len(turns) - 1)
