"""InternVL's and LLaVA's rows: ``conversations`` of ``from`` and ``value``, images under ``image``.

As in the original, a first turn that is an answer is left out. ShareGPT's names of the speakers are read too. A row
with ``video`` shows its frames where ``<video>`` stands in a question, or before the first one; ``clip`` is [from, to]
in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mini_internvl.data.formats._turns import absent, conversation, example, images, shown, text, with_images
from mini_internvl.inputs.messages import VIDEO, VIDEOS
from mini_internvl.records import Message, Part

KEYS = frozenset({"conversations", "image", "width", "height", "width_list", "height_list", "video", "clip"})


def reads(keys: frozenset[str]) -> bool:
    return "conversations" in keys and "images" not in keys


def messages(raw: Mapping[str, Any]) -> list[Message]:
    spoken = conversation(raw)
    said = with_images(spoken[1:] if spoken[0][0] == "assistant" else spoken, images(raw, "image"))
    return said if absent(raw.get("video")) else _with_video(said, raw)


def _with_video(said: list[Message], raw: Mapping[str, Any]) -> list[Message]:
    """The messages with the row's video before what a question holds: the one with its placeholder, or the first."""
    clip: Any = None if absent(raw.get("clip")) else raw["clip"]
    if clip is not None and not (isinstance(clip, list | tuple) and len(clip) == 2):
        raise ValueError(f"clip is {shown(clip)}; it must be [from, to] in seconds")
    times = (
        {} if clip is None else {key: time for key, time in zip(("from", "to"), clip, strict=True) if time is not None}
    )
    part: Part = {"type": "video", "video": text(raw["video"], "video"), **times}
    asked = {
        place: [{"type": "text", "text": content}] if isinstance(content := message["content"], str) else list(content)
        for place, message in enumerate(said)
        if message["role"] == "user"
    }
    if not asked:
        raise ValueError("a video but no question: no turn is from human or user")
    marked = [place for place, parts in asked.items() if any(VIDEOS.search(one.get("text", "")) for one in parts)]
    if len(marked) > 1:
        raise ValueError(f"{len(marked)} questions have a {VIDEO} placeholder but the row has one video; leave one")
    place = marked[0] if marked else min(asked)
    said[place] = {**said[place], "content": [part, *asked[place]]}
    return said


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
