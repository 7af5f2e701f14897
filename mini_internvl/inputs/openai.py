"""The OpenAI wire form, both ways: messages as a server takes them, and messages and answers that came read.

What comes from elsewhere is never trusted: a request may name no file (see ``messages.DATA_URLS``), and a reply of an
odd shape is kept as text with a word about what is odd.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from mini_internvl.inputs import images
from mini_internvl.inputs.messages import (
    DATA_URLS,
    ChatError,
    ImagePart,
    Messages,
    TextPart,
    Turn,
    normalise,
)

KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
"""First bytes of a file -> kind that servers take as it is; others are sent as PNG."""
KEPT_CHARACTERS = 4_000
"""Characters kept of a reply that is no text."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A server's answer."""

    text: str
    """The first choice; where that is no text, its JSON, cut to be read by people."""
    prompt_tokens: int = 0
    """As the server counts them; 0 when it does not say."""
    tokens: int = 0
    """Tokens of the answer; 0 when the server does not say."""
    finish_reason: Literal["stop", "length"] = "stop"
    """"length" where the server cut the answer off."""
    odd: str = ""
    """What was not as it should be about the text, if anything."""


def to_wire(messages: Messages) -> list[dict[str, Any]]:
    """Messages as a server takes them: images where a local model would have them, with the same labels.

    Raises:
        ChatError, ImageError: the messages are malformed, or an image cannot be read.
    """
    turns = normalise(messages)
    count, number, sent = sum(len(turn.images) for turn in turns), 0, []
    for turn in turns:
        content: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": part.text})
                continue
            number += 1
            if label := part.label(number, count):
                content.append({"type": "text", "text": label})
            content.append({"type": "image_url", "image_url": {"url": data_url(part)}})
        sent.append({"role": turn.role, "content": content if turn.images else turn.text})
    return sent


def data_url(part: ImagePart) -> str:
    """An image as it is where servers take its kind, as PNG otherwise; one with a scale is enlarged here.

    Raises:
        ImageError: it cannot be read.
    """
    source = part.source
    if part.scale != 1:
        source = images.enlarged(source, part.scale)
    if not isinstance(source, Image.Image):
        if isinstance(source, str) and source.startswith("data:"):
            return source
        _, stream = images.open_source(source)
        with stream:
            source = stream.read()
        if kind := next((kind for start, kind in KINDS.items() if source.startswith(start)), None):
            return f"data:image/{kind};base64,{base64.b64encode(source).decode()}"
    buffer = io.BytesIO()
    images.load_image(source).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def from_wire(messages: object) -> tuple[Turn, ...]:
    """The messages of somebody's request; images come with it or not at all.

    Raises:
        ChatError: they are malformed, or name a file or an address.
    """
    if not isinstance(messages, list):
        raise ChatError("the request has no messages; send a list of them")
    return normalise(messages, policy=DATA_URLS)


def read_completion(answer: Any) -> Completion:
    """A server's answer, whatever stands in it.

    Raises:
        ValueError: it has no choices with a message.
    """
    try:
        content = answer["choices"][0]["message"].get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the answer has no choices; is this an OpenAI-compatible server?") from None
    assert isinstance(answer, Mapping)
    text, odd = _text(content)
    usage = answer.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    return Completion(
        text=text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
        prompt_tokens=_count(counts.get("prompt_tokens")),
        tokens=_count(counts.get("completion_tokens")),
        finish_reason="length" if answer["choices"][0].get("finish_reason") == "length" else "stop",
        odd=odd,
    )


def _text(content: Any) -> tuple[str, str]:
    """The text of a message's content, and what is odd about it."""
    if content is None or isinstance(content, str):
        return content or "", ""
    odd = f"its content is {type(content).__name__}"
    if isinstance(content, list):
        texts = [part.get("text", "") for part in content if isinstance(part, Mapping)]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(texts), ""
        odd = "its content is a list of more than texts"
    return json.dumps(content, ensure_ascii=False)[:KEPT_CHARACTERS], odd


def _count(value: object) -> int:
    """A number of tokens; 0 for what is none."""
    return int(value) if isinstance(value, int | float) and math.isfinite(value) and value >= 0 else 0
