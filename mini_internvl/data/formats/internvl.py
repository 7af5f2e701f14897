"""InternVL's and LLaVA's rows: ``conversations`` of ``from`` and ``value``, images under ``image``.

As in the original, a first turn that is an answer is left out. ShareGPT's names of the speakers are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mini_internvl.data.formats._turns import conversation, example, images, with_images
from mini_internvl.records import Message

KEYS = frozenset({"conversations", "image", "width", "height", "width_list", "height_list"})


def reads(keys: frozenset[str]) -> bool:
    return "conversations" in keys and "images" not in keys


def messages(raw: Mapping[str, Any]) -> list[Message]:
    spoken = conversation(raw)
    return with_images(spoken[1:] if spoken[0][0] == "assistant" else spoken, images(raw, "image"))


EXAMPLE = (
    {
        "id": 7,
        "image": ["left.jpg", "right.jpg"],
        "conversations": [
            {"from": "human", "value": "Left: <image>\nRight: <image>\nWhich is darker?"},
            {"from": "gpt", "value": "The right one."},
        ],
    },
    example(["left.jpg", "right.jpg", "Left: <image>\nRight: <image>\nWhich is darker?"], "The right one.", id="7"),
)
