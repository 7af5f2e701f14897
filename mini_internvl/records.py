"""What flows through the package: frozen records without logic.

Every arrow of the three ways through (ask, train, evaluate) takes one of these and returns another.
Importing this module imports neither torch nor PIL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import torch

Part = Mapping[str, Any]
"""One piece of a message, in the OpenAI shape.

``{"type": "text", "text": str}`` or ``{"type": "image", "image": path | PIL image | bytes | data URL}``; an image may
carry ``"name"`` (a view such as ``"CAM_FRONT"`` or a frame such as ``"Frame-1"``), ``"scale"`` (times that its sides
are enlarged before it is cut into tiles) and ``"max_tiles"`` (its own limit). ``{"type": "image_url",
"image_url": {"url": ...}}`` is accepted too, and ``{"type": "video", "video": path | bytes | data URL}``, which becomes
its frames (``inputs/video.py``) and may carry ``"fps"``, ``"from"`` and ``"to"`` (seconds), ``"min_frames"``,
``"max_frames"``, ``"name"`` and ``"max_tiles"``.
"""


class Message(TypedDict):
    """One turn of a conversation, in the OpenAI shape."""

    role: str
    """``"system"``, ``"user"`` or ``"assistant"``."""
    content: str | Sequence[Part]
    """Plain text, or a list of text and image parts in reading order."""


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How a conversation becomes text for one family of language models (facts: ``internvl/conversation.py``)."""

    name: str
    """The value of ``template`` in config.json, for instance ``"Hermes-2"``."""
    system_role: str
    """Text before the system message, for instance ``"<|im_start|>system\\n"``."""
    user_role: str
    assistant_role: str
    """Text before each answer, as ``user_role`` before each question; alone it opens the turn to be answered."""
    sep: str
    """Text after every turn, system included; its token id also stops generation."""
    system_message: str
    """The system message used when neither the conversation nor config.json gives one."""
    strips_turns: bool = False
    """Whether white space around each turn of a training sample is dropped first."""


@dataclass(frozen=True, kw_only=True)
class PatchAnnotation:
    """One thing drawn in an image and where it stands, for the loss over patches."""

    text: str
    """A character, or the name of a shape."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the image's width and height."""
    place: int | None = None
    """Number of the character in its line, or of the shape from the left, from 0; ``None`` where there is none."""
    line: int | None = None
    """Number of the line, or of the shape from the top, from 0."""
    colour: str | None = None


Target = float | tuple[float, ...] | str
"""A number, several of one kind, or the name of a class."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training conversation, before tokens: what a domain, a data file or a generator yields."""

    id: str
    """Unique in its source."""
    messages: Sequence[Message]
    """The turns; every assistant turn is supervised."""
    source: str = ""
    max_tiles: int | None = None
    """Tile limit of this sample's images; ``None`` leaves it to the recipe."""
    patch_annotations: Sequence[PatchAnnotation] = ()
    """What stands where in the sample's one image, if that is known."""
    independent: bool = False
    """Whether every question stands alone with the images of the first turn: it is trained as if it had been asked
    first, and sees no other question or answer. ``False`` is a conversation. See ``train.independent``."""
    targets: Mapping[str, Target] = field(default_factory=dict)
    """What is true of the sample beside its answers, by name: what heads on hidden states learn."""
    place: str = field(default="", compare=False)
    """Where it was read (``FILE:12``), for errors; "" where it was made."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids of a conversation with its supervision mask."""

    input_ids: list[int]
    """Token ids, BOS first where the tokenizer has one."""
    labels: list[int]
    """Same length; the token id where it is supervised, -100 elsewhere."""


@dataclass(frozen=True, kw_only=True)
class NamedImage:
    """An image of a stage that keeps the features of its frozen encoder, or of a teacher (``train.kept``)."""

    key: str
    """Tells it from all others, however they are cut; "" for one whose features are not kept."""
    tiles: int
    kept: bool
    """Whether its features were loaded: they stand in ``features``, and its tiles nowhere. Where a student learns a
    teacher's features, it reads the tiles all the same, and they are there."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample as the model reads it, not yet batched."""

    sample_id: str
    """``Sample.source`` and ``Sample.id`` joined, for errors and logs."""
    input_ids: torch.Tensor
    """(T,) int64."""
    labels: torch.Tensor
    """(T,) int64, -100 where unsupervised."""
    tiles: torch.Tensor
    """(tiles, S, S, 3) uint8, not yet normalised; zero tiles for a text-only sample."""
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What the stage's losses want beside labels, by name; see ``targets`` in ``train.losses``."""
    segment_ids: torch.Tensor | None = None
    """(T,) int64 of independent questions: 0 at the prefix that they share, then 1, 2, ... (see :class:`Batch`)."""
    document_ids: torch.Tensor | None = None
    """(T,) int64, 0, 1, ...; ``None`` where all is one document."""
    images: Sequence[NamedImage] = ()
    """Where features are kept, all images in their order; ``tiles`` are those of images that are not kept."""
    features: torch.Tensor | None = None
    """(tiles of kept images, tokens, width) as they are kept; ``None`` where there are none."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a sample costs, known from its text and the headers of its images alone."""

    tokens: int
    """Decoder tokens, visual ones included."""
    supervised: int
    """Those of them that have a label."""
    tiles: int
    """Tiles that the encoder reads."""
    shortened: bool = False
    """Whether that is of less than the whole sample, which is too long."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples padded on the right to one length.

    A token sees itself and earlier tokens of its row: those of its own document, and there those of segment 0 and of
    its own segment. A conversation is one document of segment 0. Independent questions are one document: their shared
    prefix is segment 0, each question with its answer a further segment. Packed documents stand one after the other.
    """

    sample_ids: tuple[str, ...]
    input_ids: torch.Tensor
    """(B, T) int64."""
    labels: torch.Tensor
    """(B, T) int64, -100 at padding and unsupervised tokens."""
    attention_mask: torch.Tensor
    """(B, T) int64, 1 at real tokens."""
    position_ids: torch.Tensor
    """(B, T) int64: each document counts from 0, each of its questions on from the shared prefix; 0 at padding."""
    tiles: torch.Tensor
    """(tiles of all rows, S, S, 3) uint8, in row order; the learner normalises them on its device."""
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Those of the rows, joined along their first axis."""
    segment_ids: torch.Tensor | None = None
    """(B, T) int64, -1 at padding; ``None`` where all is segment 0."""
    document_ids: torch.Tensor | None = None
    """(B, T) int64, -1 at padding; ``None`` where every row is one document."""
    images: Sequence[NamedImage] = ()
    """Those of the rows, in row order."""
    features: torch.Tensor | None = None
    """Those of the rows, joined along their first axis."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of a benchmark with what its scorer needs."""

    id: str
    """Unique in the benchmark."""
    messages: Sequence[Message]
    """The prompt as it is asked, last turn from the user."""
    reference: Mapping[str, Any]
    """Gold answers and everything else the scorer reads."""
    max_tiles: int | None = None
    """The benchmark's tile limit; ``None`` uses the model's."""
    max_new_tokens: int = 100
    """The benchmark's answer limit."""
    temperature: float = 0.0
    """0 takes the most likely tokens; above, the answer is drawn, always with the same seed."""
    target: str = ""
    """Name of the number or class that is asked for, where it is one: a model with a head of this name may answer with
    the head's value."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answer, kept so that scoring again costs no inference."""

    item_id: str
    text: str
    """The answer as decoded, stop token removed."""
    thought: str = ""
    """What the model thought aloud before it."""
    seconds: float = 0.0
    """Wall-clock seconds of this answer (its share of the batch)."""


class Interrupted(Exception):
    """Long work was stopped from outside and what it did is saved; the message says where."""


class JudgeError(RuntimeError):
    """A judge model could not answer; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A benchmark's result."""

    benchmark: str
    values: Mapping[str, float]
    """Metric name to value, in the unit that papers print."""
    items: int
    errors: Mapping[str, float] = field(default_factory=dict)
    """Standard error of a metric, in its unit; metrics without one are left out."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Items behind a metric, where they are not all."""
    partial: str = ""
    """Why metrics are missing or provisional, for instance without a judge; empty for a complete score."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Counts worth telling, for instance unreadable answers."""
