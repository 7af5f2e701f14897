"""OpenAI's rows: ``messages`` of ``role`` and ``content``, images inside the contents.

Keys of a part that hold null are left out: Parquet gives every part the keys of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from mini_internvl.data.formats._turns import shown, turns
from mini_internvl.records import Message, Sample

KEYS = frozenset({"messages"})


def reads(keys: frozenset[str]) -> bool:
    return "messages" in keys and not keys & {"image", "images"}


def messages(raw: Mapping[str, Any]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in spoken(raw)]


def spoken(raw: Mapping[str, Any]) -> list[tuple[str, str | list[Any]]]:
    """(role, content) of the turns of ``messages``."""
    said = enumerate(turns(raw, "messages", "role", "content"))
    return [(role, _content(content, f"messages[{number}].content")) for number, (role, content) in said]


def _content(value: object, field: str) -> str | list[Any]:
    """A text, or a list of parts that are objects."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise ValueError(f"{field} is {shown(value)}; it must be a text or a list of parts")
    parts = []
    for number, part in enumerate(value):
        if not isinstance(part, Mapping):
            raise ValueError(f"{field}[{number}] is {shown(part)}; it must be an object with a type")
        parts.append({key: one for key, one in part.items() if one is not None})
    return parts


_SHOWN = [{"type": "image", "image": "cat.jpg", "name": "Front"}, {"type": "text", "text": "?"}]
_TURNS = [{"role": "user", "content": _SHOWN}, {"role": "assistant", "content": "A cat."}]
EXAMPLE = (
    {"id": "cat-1", "messages": _TURNS, "independent": True, "max_tiles": 6},
    Sample(id="cat-1", messages=cast(Any, _TURNS), source="example", independent=True, max_tiles=6),
)
