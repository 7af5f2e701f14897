"""The OpenAI wire form: messages as a server takes them, and a server's answers, which are never trusted."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from PIL import Image

from mini_internvl.inputs import images
from mini_internvl.inputs.messages import ImagePart, Messages, normalise

IMAGE_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
"""First bytes of a file -> type that servers take as it is; others are sent as PNG."""
MAX_REPLY_CHARS = 4_000  # characters kept of a reply that is no text


def to_wire(messages: Messages) -> list[dict[str, Any]]:
    """Messages as a server takes them: images where a local model would have them, with the same labels.

    ChatError or ImageError when the messages are malformed, or an image cannot be read.
    """
    turns = normalise(messages)
    count, number, sent = sum(len(turn.images) for turn in turns), 0, []
    for turn in turns:
        content: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
                continue
            number += 1
            if label := part.label(number, count):
                content.append({"type": "text", "text": label})
            content.append({"type": "image_url", "image_url": {"url": data_url(part)}})
        sent.append({"role": turn.role, "content": content if turn.images else turn.text})
    return sent


def data_url(part: ImagePart) -> str:
    """An image as it is where servers take its type, as PNG otherwise; one with a scale is enlarged here."""
    source = part.source if part.scale == 1 else images.load_image(part.source, scale=part.scale)
    if not isinstance(source, Image.Image):
        if isinstance(source, str) and source.startswith("data:"):
            return source
        _, stream = images.open_source(source)
        with stream:
            source = stream.read()
        if kind := next((kind for start, kind in IMAGE_TYPES.items() if source.startswith(start)), None):
            return f"data:image/{kind};base64,{base64.b64encode(source).decode()}"
    buffer = io.BytesIO()
    images.load_image(source).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def read_reply(answer: Any) -> dict[str, Any]:
    """The fields of a ``Reply`` that a server's answer tells; a text of an odd shape is kept as JSON to be read.

    ValueError when it has no choices with a message.
    """
    try:
        choice = answer["choices"][0]
        content = choice["message"].get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the answer has no choices; is this an OpenAI-compatible server?") from None
    text, odd = _text(content)
    usage = answer.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    return {
        "text": text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip(),
        "prompt_tokens": _count(counts.get("prompt_tokens")),
        "tokens": _count(counts.get("completion_tokens")),
        "finish_reason": "length" if choice.get("finish_reason") == "length" else "stop",
        "odd": odd,
    }


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
    return json.dumps(content, ensure_ascii=False)[:MAX_REPLY_CHARS], odd


def _count(value: object) -> int:
    """A number of tokens; 0 for what is none."""
    return int(value) if isinstance(value, int | float) and math.isfinite(value) and value >= 0 else 0
