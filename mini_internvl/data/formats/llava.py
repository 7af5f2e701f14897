"""ShareGPT's rows as LLaMA-Factory writes them: ``conversations`` of ``from`` and ``value``, images under ``images``.

``system``, where a row has it, is its first turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from mini_internvl.data.formats._turns import absent, images, text, turns, with_images
from mini_internvl.records import Message, Sample

KEYS = frozenset({"conversations", "images", "image", "system", "width", "height"})


def reads(keys: AbstractSet[str]) -> bool:
    """Whether there are conversations and a list of images."""
    return "conversations" in keys and "images" in keys


def messages(raw: Mapping[str, Any]) -> list[Message]:
    """The conversation with its images; ValueError names the field that is wrong."""
    system = [] if absent(raw.get("system")) else [("system", text(raw["system"], "system"))]
    spoken = [
        (role, text(said, f"conversations[{number}].value"))
        for number, (role, said) in enumerate(turns(raw, "conversations", "from", "value"))
    ]
    return with_images([*system, *spoken], images(raw, "image", "images"))


EXAMPLE = (
    {
        "system": "Answer in one word.",
        "images": ["cat.jpg"],
        "conversations": [{"from": "user", "value": "What is this?"}, {"from": "assistant", "value": "Cat."}],
    },
    Sample(
        id="1",
        messages=[
            {"role": "system", "content": "Answer in one word."},
            {
                "role": "user",
                "content": [{"type": "image", "image": "cat.jpg"}, {"type": "text", "text": "What is this?"}],
            },
            {"role": "assistant", "content": "Cat."},
        ],
        source="example",
    ),
)
