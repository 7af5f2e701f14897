"""Independent questions about the same images: packed into one row, each trained as if it alone had been asked.

The row begins with the prefix that they share, up to the last visual token (segment 0), and goes on with the rest of
each question and its answer (segments 1, 2, ...). Each question attends to the prefix and to itself only, and its
positions count on from the prefix, so loss and gradients are those of one row per question, while the images are read
once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mini_internvl.inputs import chat
from mini_internvl.records import Encoded, Message, Part

PADDING = -1
"""Segment of a padding token."""


def split_questions(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """One conversation for each question, all with the images of the first and the system message, if any.

    What holds one question or no image stays as it is, the only element.

    Raises:
        ValueError: the first question does not begin with its images, a later one has its own, or a question has not
            exactly one answer.
    """
    if not chat.images(messages):
        return [messages]
    system = list(messages[:1]) if messages[0].get("role") == "system" else []
    turns = messages[len(system) :]
    if len(turns) <= 2:
        return [messages]
    if [turn.get("role") for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("questions that stand apart each have one answer: user and assistant alternate")
    images, lead, first = _split(turns[0]["content"])
    alone: list[Sequence[Message]] = []
    for place in range(0, len(turns), 2):
        question = _later(turns[place]["content"]) if place else first
        content: list[Part] = [*images, {"type": "text", "text": lead + question}]
        alone.append([*system, {"role": "user", "content": content}, turns[place + 1]])
    return alone


def _split(content: str | Sequence[Part]) -> tuple[list[Part], str, str]:
    """The first question's images, its text up to and including the last ``<image>`` mark, if any, and the rest."""
    parts: Sequence[Part] = [] if isinstance(content, str) else content
    images = [part for part in parts if part["type"] != "text"]
    text = "".join(part["text"] for part in parts[len(images) :] if part["type"] == "text")
    if not images or any(part["type"] == "text" for part in parts[: len(images)]):
        raise ValueError("questions stand apart only where the first begins with all images; put its text after them")
    end = text.rfind(chat.IMAGE) + len(chat.IMAGE) if chat.IMAGE in text else 0
    question = text[end:].lstrip()
    if not question:
        raise ValueError(
            f"questions stand apart only where the first begins with all images; no text after {chat.IMAGE}"
        )
    return images, text[: len(text) - len(question)], question


def _later(content: str | Sequence[Part]) -> str:
    """The text of a question without images."""
    if isinstance(content, str):
        return content
    if any(part["type"] != "text" for part in content):
        raise ValueError(
            "a later question has an image of its own; questions that stand apart share those of the first"
        )
    return "".join(part["text"] for part in content)


def join(pieces: Sequence[Encoded], context: int) -> tuple[Encoded, list[int]]:
    """One row of the conversations of :func:`one_by_one`.

    Args:
        pieces: at least one, each with visual tokens.
        context: id of the visual token.

    Returns:
        The row, and the segment of each of its tokens.

    Raises:
        ValueError: the conversations do not begin alike, or an answer has no supervised token.
    """
    begin = pieces[0].input_ids
    shared = len(begin) - begin[::-1].index(context)
    ids, labels, segments = begin[:shared], pieces[0].labels[:shared], [0] * shared
    for number, piece in enumerate(pieces, 1):
        if piece.input_ids[:shared] != begin[:shared] or context in piece.input_ids[shared:]:
            raise ValueError(
                f"question {number} does not begin with the images as the first does; they cannot stand apart"
            )
        if all(label == chat.IGNORE for label in piece.labels):
            raise ValueError(
                f"answer {number} has no supervised token; keep the template's control tokens out of its text"
            )
        ids = ids + piece.input_ids[shared:]
        labels = labels + piece.labels[shared:]
        segments = segments + [number] * (len(piece.input_ids) - shared)
    return Encoded(input_ids=ids, labels=labels), segments


def position_ids(segment_ids: Tensor) -> Tensor:
    """(T,) segments of one row, each in one piece -> (T,) positions: all count on from the end of segment 0."""
    places = torch.arange(len(segment_ids))
    starts = torch.ones(len(segment_ids), dtype=torch.bool)
    starts[1:] = segment_ids[1:] != segment_ids[:-1]
    start = (places * starts).cummax(0).values
    return torch.where(segment_ids == 0, places, places - start + (segment_ids == 0).sum())
