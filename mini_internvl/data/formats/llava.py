"""ShareGPT's rows as LLaMA-Factory writes them: ``conversations`` of ``from`` and ``value``, images under ``images``.

``system``, where a row has it, is its first turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mini_internvl.data.formats._turns import conversation, example, images, system, with_images
from mini_internvl.records import Message

KEYS = frozenset({"conversations", "images", "image", "system", "width", "height"})


def reads(keys: frozenset[str]) -> bool:
    return "conversations" in keys and "images" in keys


def messages(raw: Mapping[str, Any]) -> list[Message]:
    return with_images([*system(raw), *conversation(raw)], images(raw, "image", "images"))


EXAMPLE = (
    {
        "system": "Answer in one word.",
        "images": ["cat.jpg"],
        "conversations": [{"from": "user", "value": "What is this?"}, {"from": "assistant", "value": "Cat."}],
    },
    example(["cat.jpg", "What is this?"], "Cat.", system="Answer in one word."),
)
