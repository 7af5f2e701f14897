"""Messages, normalised once where they enter: what everything behind reads instead of dictionaries.

A message in the OpenAI shape becomes a :class:`Turn` of texts and images in the order in which the model reads them.
In a text the placeholder ``<image>`` says where an image goes; ``\\<image>`` is the text itself. A video becomes its
frames here, images named ``Frame-1``, ``Frame-2``, ...; where a message has a video, ``<video>`` says where it goes.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mini_internvl.inputs import images, video
from mini_internvl.records import Message

PLACEHOLDER = "<image>"
ESCAPED = "\\" + PLACEHOLDER
PLACEHOLDERS = re.compile(r"(?<!\\)" + PLACEHOLDER)
VIDEO = "<video>"
VIDEOS = re.compile(r"(?<!\\)" + VIDEO + "\n?")
FRAME_TILES = 1  # of each frame, unless its video says how many its frames may share
PART_TYPES = {
    "text": '"text": a text',
    "image": '"image": an image',
    "image_url": '"image_url": {"url": ...}',
    "video": '"video": a path, a data URL or bytes',
}
"""Part type -> what such a part needs."""

_log = logging.getLogger(__name__)


class ChatError(ValueError):
    """A conversation that cannot be used; the message names the turn."""


@dataclass(frozen=True, kw_only=True)
class ImagePart:
    """An image and how it is shown."""

    source: (
        Any  # path, ``data:`` URL, bytes, PIL image, frame of a video or an object with ``read()``; opened when needed
    )
    name: str = ""  # a view such as ``"CAM_FRONT"`` or a frame such as ``"Frame-1"``, written before it
    scale: int = 1  # times that its sides are enlarged before it is cut
    max_tiles: int | None = None  # its own tile limit; ``None`` shares the conversation's
    placed: bool = False  # whether a placeholder in the text put it here: then it has no label and no line of its own

    @property
    def is_frame(self) -> bool:
        """Whether it is a frame of a video."""
        return isinstance(self.source, video.VideoFrame)

    def label(self, number: int, count: int) -> str:
        """What is written before it, the ``number``-th of ``count`` images of a conversation."""
        if self.placed or not (self.name or count > 1):
            return ""
        return f"{self.name or f'Image-{number}'}: "


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One normalised message."""

    role: Any
    """``"system"``, ``"user"`` or ``"assistant"``; the renderer checks it with the order of turns."""
    parts: tuple[str | ImagePart, ...]
    """In reading order; two texts never follow each other, and none is parsed again: ``<image>`` in it is text."""

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.parts if isinstance(part, ImagePart))

    @property
    def text(self) -> str:
        """Without images."""
        return "".join(part for part in self.parts if isinstance(part, str))


Frames = tuple[ImagePart, ...]
Messages = Sequence[Message | Turn]
"""A conversation in either form; every function that takes one normalises it, which costs nothing the second time."""


def normalise(messages: Messages, *, data_urls_only: bool = False) -> tuple[Turn, ...]:
    """Messages in the OpenAI shape, or turns already, as turns.

    In a conversation that ends with an answer, a training sample, half a surrogate pair and an ``<image>`` in an answer
    are refused; in a question the one is replaced with a warning, and an answer's ``<image>`` is text.

    ``data_urls_only`` is for requests from elsewhere: their images come with them, nothing of ours is opened.
    ChatError for a message or part that lacks what it needs or is of an unknown kind, placeholders and images that
    differ in number, or an image that may not be opened; web addresses never may. A video's header is read here:
    ChatError where it is missing or damaged.
    """
    if type(messages) is tuple and set(map(type, messages)) == {Turn}:
        return messages
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise ChatError(f"the messages are {type(messages).__name__}; give a list of them")
    training = is_sample(messages)
    return tuple(
        message if isinstance(message, Turn) else _turn(message, f"turn {number}", data_urls_only, training)
        for number, message in enumerate(messages, 1)
    )


def is_sample(messages: Messages) -> bool:
    """Whether a conversation ends with an answer, as training samples do."""
    last = messages[-1] if messages else None
    role = last.role if isinstance(last, Turn) else last.get("role") if last and _is_mapping(last) else None
    return role == "assistant"


def image_parts(messages: Messages) -> list[ImagePart]:
    """The images of a conversation in reading order."""
    return [image for turn in normalise(messages) for image in turn.images]


def question(messages: Messages) -> str:
    """All text of a conversation, without its images."""
    return "\n".join(text for turn in normalise(messages) if (text := turn.text.strip()))


def beside(messages: Sequence[Any], folder: Path) -> list[Any]:
    """Messages of a data file, relative paths of images joined to its folder; :func:`normalise` refuses odd ones."""

    place = os.fspath(folder)
    place = "" if place == os.curdir else place

    def joined(source: Any) -> Any:
        plain = isinstance(source, str) and source and not source.startswith(("data:", "http://", "https://"))
        return os.path.join(place, source) if plain else source

    def one(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        address = part.get("image_url")
        if isinstance(address, Mapping) and "url" in address:
            return {**part, "image_url": {**address, "url": joined(address["url"])}}
        return {**part, **{key: joined(part[key]) for key in ("image", "video") if key in part}}

    def message(one_message: Any) -> Any:
        content = one_message.get("content") if isinstance(one_message, Mapping) else None
        return {**one_message, "content": [one(p) for p in content]} if isinstance(content, list) else one_message

    return [message(m) for m in messages]


def _is_mapping(value: Any) -> bool:
    """Most are dictionaries, which the abstract class takes long to see."""
    return type(value) is dict or isinstance(value, Mapping)


def _turn(message: Any, where: str, data_urls_only: bool, training: bool) -> Turn:
    if not _is_mapping(message):
        raise ChatError(f"{where} is {type(message).__name__}; give role and content")
    role, content = message.get("role"), message.get("content")
    if isinstance(content, str):
        if PLACEHOLDER not in content:
            return Turn(role=role, parts=(_unicode(content, where, training),) if content else ())
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise ChatError(f"{where}: the content is {type(content).__name__}; give a text or a list of parts")
    parts = _with_videos([_part(part, where, data_urls_only, training) for part in content], where)
    found = sum(isinstance(part, ImagePart) and not part.is_frame for part in parts)
    wanted = sum(len(PLACEHOLDERS.findall(part)) for part in parts if isinstance(part, str) and PLACEHOLDER in part)
    if role == "assistant":
        if any(isinstance(part, ImagePart) for part in parts) or (wanted and training):
            raise ChatError(
                f"{where} is an answer and holds an image; move it to the question, or write {ESCAPED} for the text"
            )
    elif wanted and wanted != found:
        raise ChatError(
            f"{where} has {wanted} {PLACEHOLDER} placeholders but {found} images; write {ESCAPED} where the text "
            "itself is meant"
        )
    elif wanted:
        parts = _placed(parts)
    return Turn(role=role, parts=_joined(parts))


def _part(part: Any, where: str, data_urls_only: bool, training: bool) -> str | ImagePart | Frames:
    kind = part.get("type") if _is_mapping(part) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return _unicode(part["text"], where, training)
    holder, key = (part.get("image_url"), "url") if kind == "image_url" else (part, "image")
    if kind in ("image", "image_url") and _is_mapping(holder) and key in holder:
        return _image(part, holder[key], where, data_urls_only)
    if kind == "video" and "video" in part:
        return _frames(part, where, data_urls_only)
    if kind in tuple(PART_TYPES):  # it may be anything, also what cannot be hashed
        raise ChatError(f'{where}: a part of type "{kind}" needs {PART_TYPES[kind]}')
    raise ChatError(f'{where}: unknown part type "{kind}"; known: {", ".join(PART_TYPES)}')


def _image(part: Mapping[str, Any], source: Any, where: str, data_urls_only: bool) -> ImagePart:
    name = part.get("name") or ""
    if not isinstance(name, str):
        raise ChatError(f"{where}: an image's name is {type(name).__name__}; it must be a text")
    numbers: dict[str, Any] = _numbers(part, ("scale", "max_tiles"), f"{where}: an image's")
    try:
        images.refuse_web(source)
    except images.ImageError as error:
        raise ChatError(f"{where}: {error}") from None
    if data_urls_only and not (isinstance(source, str) and source.startswith("data:")):
        raise ChatError(f"{where}: only images as data:image/png;base64,... are accepted here")
    return ImagePart(source=source, name=name, **numbers)


def _numbers(part: Mapping[str, Any], keys: Sequence[str], whose: str) -> dict[str, int]:
    """What a part says under these keys, whole numbers from 1."""
    numbers = {key: part[key] for key in keys if part.get(key) is not None}
    for key, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ChatError(f"{whose} {key} is {number!r}; it must be a whole number of at least 1")
    return numbers


def _frames(part: Mapping[str, Any], where: str, data_urls_only: bool) -> Frames:
    """The frames of a video; ``max_tiles`` is what they share, each gets at least one."""
    source, name = part["video"], part.get("name") or ""
    if data_urls_only:
        raise ChatError(f"{where}: videos are not accepted here; send some of its frames as images")
    if not isinstance(source, str | bytes | os.PathLike) or not isinstance(name, str):
        raise ChatError(f"{where}: a video is a path, a data URL or bytes, and its name a text")
    numbers = _numbers(part, ("max_tiles",), f"{where}: a video's")
    keys = {"fps": "fps", "from": "begin", "to": "end", "min_frames": "min_frames", "max_frames": "max_frames"}
    told = {own: part[key] for key, own in keys.items() if part.get(key) is not None}
    if "max_frames" in told and "min_frames" not in told and isinstance(told["max_frames"], int):
        told["min_frames"] = min(video.MIN_FRAMES, told["max_frames"])
    elif "min_frames" in told and "max_frames" not in told and isinstance(told["min_frames"], int):
        told["max_frames"] = max(video.MAX_FRAMES, told["min_frames"])
    try:
        found = video.frames(source, video.Clip(**told))
    except ValueError as error:
        raise ChatError(f"{where}: {error}") from None
    tiles = max(1, numbers.get("max_tiles", FRAME_TILES) // len(found))
    label = f"{name} Frame" if name else "Frame"
    return tuple(
        ImagePart(source=frame, name=f"{label}-{number}", max_tiles=tiles) for number, frame in enumerate(found, 1)
    )


def _with_videos(parts: Sequence[str | ImagePart | Frames], where: str) -> list[str | ImagePart]:
    """The parts with the frames of videos among them: where the texts say ``<video>``, or where the parts stand."""
    videos = [part for part in parts if isinstance(part, tuple)]
    if not videos:
        return [part for part in parts if not isinstance(part, tuple)]
    wanted = sum(len(VIDEOS.findall(part)) for part in parts if isinstance(part, str))
    if wanted not in (0, len(videos)):
        raise ChatError(
            f"{where} has {wanted} {VIDEO} placeholders but {len(videos)} videos; write \\{VIDEO} where the text "
            "itself is meant"
        )
    in_order, spread = iter(videos), list[str | ImagePart]()
    for part in parts:
        if isinstance(part, tuple):
            spread += () if wanted else part
        elif isinstance(part, ImagePart):
            spread.append(part)
        else:
            first, *others = VIDEOS.split(part)
            for number, text in enumerate([first, *others]):
                spread += [*(next(in_order) if number else ()), text.replace("\\" + VIDEO, VIDEO)]
    return spread


def _unicode(text: str, where: str, training: bool) -> str:
    """The text, with U+FFFD for half a surrogate pair where a question holds one: no tokenizer takes it."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError as error:
        half = f"half a surrogate pair (\\u{ord(text[error.start]):04x})"
    if training:
        raise ChatError(f"{where} holds {half}, which is no character; mend the text") from None
    _log.warning("%s holds %s, which is no character; it is read as U+FFFD", where, half)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _placed(parts: Sequence[str | ImagePart]) -> list[str | ImagePart]:
    """The images at the texts' placeholders, in their order."""
    in_order = (replace(part, placed=True) for part in parts if isinstance(part, ImagePart) and not part.is_frame)
    placed: list[str | ImagePart] = []
    for part in parts:
        if isinstance(part, str):
            first, *others = PLACEHOLDERS.split(part)
            placed.append(first)
            for text in others:
                placed += [next(in_order), text]
        elif part.is_frame:
            placed.append(part)
    return placed


def _joined(parts: Sequence[str | ImagePart]) -> tuple[str | ImagePart, ...]:
    """No empty texts, no two in a row, and escaped placeholders as their literal text."""
    joined: list[str | ImagePart] = []
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part.replace(ESCAPED, PLACEHOLDER)
        else:
            joined += [text, part]
            text = ""
    return tuple(part for part in [*joined, text] if part != "")
