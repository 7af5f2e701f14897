"""ms-swift's and LLaMA-Factory's rows: ``messages`` with ``images`` beside them, or ``query`` and ``response``.

Marks in the texts, or image parts without an image, say where the images go; ``<img>PATH</img>`` names its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mini_internvl.data.formats._turns import absent, example, images, shown, system, text, with_images
from mini_internvl.data.formats.messages import spoken
from mini_internvl.records import Message

KEYS = frozenset({"messages", "query", "response", "history", "system", "image", "images"})


def reads(keys: frozenset[str]) -> bool:
    return ("messages" in keys and bool(keys & {"image", "images"})) or {"query", "response"} <= keys


def messages(raw: Mapping[str, Any]) -> list[Message]:
    said = spoken(raw) if "messages" in raw else _exchanges(raw)
    return with_images([*system(raw), *said], images(raw, "image", "images"))


def _exchanges(raw: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """``history`` is a list of [question, answer], the oldest first."""
    said: list[tuple[str, Any]] = []
    history = [] if absent(raw.get("history")) else raw["history"]
    if not isinstance(history, list | tuple):
        raise ValueError(f"history is {shown(history)}; it must be a list of [question, answer]")
    for number, pair in enumerate([*history, (raw["query"], raw["response"])]):
        name = f"history[{number}]" if number < len(history) else "query or response"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"{name} is {shown(pair)}; it must be [question, answer]")
        said += [("user", text(pair[0], name)), ("assistant", text(pair[1], name))]
    return said


EXAMPLE = (
    {
        "messages": [
            {"role": "user", "content": "<image>What is this?"},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "And <image>?"},
            {"role": "assistant", "content": "A dog."},
        ],
        "images": ["cat.jpg", "dog.jpg"],
    },
    example(["cat.jpg", "<image>What is this?"], "A cat.", ["dog.jpg", "And <image>?"], "A dog."),
)
