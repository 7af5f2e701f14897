"""Turns with texts, and images that stand beside them -> messages: shared by the formats."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mini_internvl.inputs.messages import ESCAPED, PLACEHOLDER, PLACEHOLDERS
from mini_internvl.records import Message, Part, Sample

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""The names that data files give to speakers."""
_PLACES = re.compile(rf"{PLACEHOLDERS.pattern}|<img>(.*?)</img>", re.DOTALL)
_SHOWN = 60


def shown(value: object) -> str:
    """A value fit for an error message."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def text(value: object, field: str) -> str:
    """The value of a field that holds a text; ValueError names the field otherwise."""
    if not isinstance(value, str):
        raise ValueError(f"{field} is {shown(value)}; it must be a text")
    return value


def turns(raw: Mapping[str, Any], field: str, speaker: str, said: str) -> list[tuple[str, Any]]:
    """(role, content) of the turns in a list of objects, contents as they stand."""
    value, found = raw.get(field), []
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{field} is {shown(value)}; it must be a list of turns")
    for number, turn in enumerate(value):
        here = f"{field}[{number}]"
        if not isinstance(turn, dict):
            raise ValueError(f"{here} is {shown(turn)}; it must be an object with {speaker} and {said}")
        for key in (speaker, said):
            if key not in turn:
                raise ValueError(f"{here} has no {key}")
        name = text(turn[speaker], f"{here}.{speaker}")
        if name not in ROLES:
            raise ValueError(f'{here}.{speaker}: unknown speaker "{shown(name)[1:-1]}"; known: {", ".join(ROLES)}')
        found.append((ROLES[name], turn[said]))
    return found


def conversation(raw: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(role, text) of the turns of ``conversations``."""
    spoken = enumerate(turns(raw, "conversations", "from", "value"))
    return [(role, text(said, f"conversations[{number}].value")) for number, (role, said) in spoken]


def system(raw: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The first turn that a row's ``system`` means, if it has one."""
    return [] if absent(raw.get("system")) else [("system", text(raw["system"], "system"))]


def example(*turns: str | list[str], id: str = "1", system: str = "") -> Sample:
    """The sample of a worked example: texts, questions and answers in turn; a question with images ends its list."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for number, said in enumerate(turns):
        content: Any = said
        if not isinstance(said, str):
            content = [*({"type": "image", "image": name} for name in said[:-1]), {"type": "text", "text": said[-1]}]
        messages.append({"role": ("user", "assistant")[number % 2], "content": content})
    return Sample(id=id, messages=messages, source="example")


def absent(value: object) -> bool:
    """Whether a field says nothing: null, NaN (what pandas writes), an empty text or list."""
    if isinstance(value, str | list | tuple):
        return not value
    return value is None or (isinstance(value, float) and math.isnan(value))


def images(raw: Mapping[str, Any], *fields: str) -> list[str | bytes]:
    """The images of a row: a path, ``{"bytes": ..., "path": ...}`` as ``datasets`` writes it, or a list of them."""
    found: list[str | bytes] = []
    for field in fields:
        value = raw.get(field)
        if not absent(value):
            found += [_image(one, field) for one in (value if isinstance(value, list | tuple) else [value])]
    return found


def _image(value: object, field: str) -> str | bytes:
    if isinstance(value, Mapping):
        for key in ("bytes", "path", "url"):
            if not absent(value.get(key)):
                return _image(value[key], f"{field}.{key}")
    if isinstance(value, bytes) or (isinstance(value, str) and value):
        return value
    raise ValueError(f"{field} holds {shown(value)}; an image is a path, a data URL or bytes")


def with_images(spoken: Iterable[tuple[str, Any]], beside: Sequence[str | bytes]) -> list[Message]:
    """Put the images of a row where the questions of its conversation have placeholders.

    A placeholder is ``<image>`` in a text, or an image part without an image. Without placeholders all images come
    before the first question. ``<img>PATH</img>`` in a text is a placeholder with its image. ValueError says that
    placeholders and images differ in number, or that there is no question for the images.
    """
    spoken = list(spoken)
    asked = [content for role, content in spoken if role == "user"]
    placeholders = sum(map(_placeholders, asked))
    inline = sum("<img>" in content for content in asked if isinstance(content, str))
    lone = len(beside) + inline == 1
    rest: Iterator[str | bytes] = iter(beside)
    lead: list[Part] = []
    if beside and not placeholders and not inline:
        if not asked:
            raise ValueError("an image but no question: no turn is from human or user")
        lead = [{"type": "image", "image": image} for image in rest]
    elif placeholders != len(beside):
        raise ValueError(
            f"{placeholders} {PLACEHOLDER} placeholders but {len(beside)} images; write {PLACEHOLDER} once in the "
            f"questions for each image, and {ESCAPED} where the text itself is meant"
        )
    messages: list[Message] = []
    for role, content in spoken:
        if role == "user":
            content = _placed(content, rest, lead, lone=lone)
            lead = []
        messages.append({"role": role, "content": content})
    return messages


def _placeholders(content: Any) -> int:
    if isinstance(content, str):
        return len(PLACEHOLDERS.findall(content))
    return sum(_is_place(part) for part in content)


def _is_place(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image" and absent(part.get("image"))


def _placed(content: Any, rest: Iterator[str | bytes], lead: list[Part], *, lone: bool) -> str | list[Part]:
    """A question with its images; the placeholder of a lone image before the text is dropped."""
    if not isinstance(content, str):
        return [*lead, *({**part, "image": next(rest)} if _is_place(part) else part for part in content)]
    found: list[Part] = [{"type": "image", "image": match[1] or next(rest)} for match in _PLACES.finditer(content)]
    said = _PLACES.sub(PLACEHOLDER, content)
    if lone and found and said.startswith(PLACEHOLDER + "\n"):
        said = said.removeprefix(PLACEHOLDER + "\n")
    return [*lead, *found, {"type": "text", "text": said}] if lead or found else said
