"""What can be trained on and is still likely a mistake: in the turns of a sample, and how it is mended.

Boxes are looked at where tags say that they are boxes; four numbers in brackets without tags are only compared with
1000, since a text may hold other lists of numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mini_internvl.inputs import boxes
from mini_internvl.inputs.messages import Turn
from mini_internvl.records import Message, Sample

TAKEN_OUT = "left out"  # what becomes of a row that cannot be mended without guessing
_CONTROL = re.compile(r"<\|(?:im_start|im_end|system|user|assistant|end|endoftext)\|>|</?img>|<IMG_CONTEXT>")
_TAG = re.compile(r"<(/?)(box|ref|quad)>")


class Oddity(NamedTuple):
    """Something odd."""

    kind: str  # ``text`` or ``box``
    what: str
    remedy: str
    fix: str = TAKEN_OUT  # what :func:`mended` does, or that the row is left out


def oddities(turns: Sequence[Turn]) -> Iterator[Oddity]:
    """What is odd in turns that can be trained on."""
    for turn in turns:
        said = turn.text
        if turn.role == "assistant" and not said.strip():
            yield Oddity("text", "an answer holds only spaces", "write the answer or take the row out")
        elif turn.role == "user" and not said.strip():
            yield Oddity("text", "a question holds no text", "write the question or take the row out")
        if turn.role == "assistant" and "[" in said and any(value > 1000 for value in _numbers(said)):
            yield Oddity(
                "box",
                "a box has a coordinate above 1000; boxes are written in thousandths of the image's sides",
                "scale its pixels",
            )
        if "box>" in said or "ref>" in said or "quad>" in said:
            yield from _tagged(said, checked=turn.role == "assistant")
        yield from _marks(said)
    if turns[-1].role == "user":
        yield Oddity(
            "text",
            "the last question has no answer, so nothing is learnt from it",
            "answer it or take it out",
            "its last question is taken out",
        )


def _numbers(text: str) -> Iterator[float]:
    return (value for _, found in boxes.parse(text) for box in found for value in box)


def _marks(said: str) -> Iterator[Oddity]:
    """Traces of a broken conversion."""
    if "\ufffd" in said:
        what = "a text holds U+FFFD, which stands where a character was lost"
        yield Oddity("text", what, "read its source in the right encoding")
    if "<" in said and (control := _CONTROL.search(said)):
        what = f"a text holds {control[0]}, which is read as letters and not as the token"
        yield Oddity("text", what, "write the turns without a chat template")


def _tagged(said: str, *, checked: bool) -> Iterator[Oddity]:
    """What is odd in tags and in what ``<box>`` holds; ``checked``: coordinates above 1000 were told already."""
    if not _balanced(said):
        yield Oddity("box", "a tag such as <box> or <ref> is not closed, or closed twice", "write <box>[[...]]</box>")
    for body in boxes.bodies(said):
        found = boxes.rows(body)
        if found is None:
            yield Oddity("box", "<box> holds no list of four numbers", "write [[x1, y1, x2, y2]]")
            continue
        values = [value for box in found for value in box]
        if min(values) < 0:
            yield Oddity("box", "a box has a coordinate below 0", "cut it off at the image's sides")
        elif max(values) > 1000:
            if not checked:
                yield Oddity("box", "a box in a question has a coordinate above 1000", "scale its pixels")
        elif max(values) <= 1 and any(value != int(value) for value in values):
            yield Oddity("box", "a box is written in shares of 1, not in thousandths", "multiply by 1000 and round")
        elif any(x1 == x2 or y1 == y2 for x1, y1, x2, y2 in found):
            yield Oddity("box", "a box has no area", "correct its corners")
        elif any(x1 > x2 or y1 > y2 for x1, y1, x2, y2 in found):
            yield Oddity(
                "box", "a box has swapped corners", "write [[left, top, right, bottom]]", "its corners are put in order"
            )


def _balanced(said: str) -> bool:
    """Whether every tag is closed before the next of its kind opens."""
    opened: dict[str, bool] = {}
    for end, name in _TAG.findall(said):
        if opened.get(name, False) != bool(end):
            return False
        opened[name] = not end
    return not any(opened.values())


def mended(sample: Sample) -> Sample:
    """The sample with corners of boxes in order and without a question that nobody answers."""
    messages = list(sample.messages)
    if messages and messages[-1]["role"] == "user" and any(one["role"] == "assistant" for one in messages):
        messages.pop()
    return replace(sample, messages=[_in_order(message) for message in messages])


def _in_order(message: Message) -> Message:
    content: Any = message["content"]
    if isinstance(content, str):
        return {**message, "content": boxes.in_order(content)}
    parts = [{**part, "text": boxes.in_order(part["text"])} if part.get("type") == "text" else part for part in content]
    return {**message, "content": parts}
