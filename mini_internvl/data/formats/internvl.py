"""InternVL's and LLaVA's rows: ``conversations`` of ``from`` and ``value``, images under ``image``.

As in the original, a first turn that is an answer is left out. ShareGPT's names of the speakers are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from mini_internvl.data.formats._turns import images, text, turns, with_images
from mini_internvl.records import Message, Sample

KEYS = frozenset({"conversations", "image", "width", "height", "width_list", "height_list"})


def reads(keys: AbstractSet[str]) -> bool:
    """Whether there are conversations and no second list of images."""
    return "conversations" in keys and "images" not in keys


def messages(raw: Mapping[str, Any]) -> list[Message]:
    """The conversation with its images; ValueError names the field that is wrong."""
    spoken = [
        (role, text(said, f"conversations[{number}].value"))
        for number, (role, said) in enumerate(turns(raw, "conversations", "from", "value"))
    ]
    if spoken[0][0] == "assistant":
        spoken = spoken[1:]
    return with_images(spoken, images(raw, "image"))


EXAMPLE = (
    {
        "id": 7,
        "image": ["left.jpg", "right.jpg"],
        "conversations": [
            {"from": "human", "value": "Left: <image>\nRight: <image>\nWhich is darker?"},
            {"from": "gpt", "value": "The right one."},
        ],
    },
    Sample(
        id="7",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": "left.jpg"},
                    {"type": "image", "image": "right.jpg"},
                    {"type": "text", "text": "Left: <image>\nRight: <image>\nWhich is darker?"},
                ],
            },
            {"role": "assistant", "content": "The right one."},
        ],
        source="example",
    ),
)
