"""Questions that stand apart: several about the same images, each trained as if it alone had been asked.

Their tokens form one row. It begins with what they share, up to the last visual token (turn 0), and goes on with the
rest of each question and its answer (turns 1, 2, ...). A turn sees turn 0 and itself, and counts its positions on from
turn 0 (``model.decoder.turn_positions``), so that loss and gradients are those of the questions one by one, while the
images are read once.
"""

from __future__ import annotations

from collections.abc import Sequence

from mini_internvl.inputs import chat
from mini_internvl.records import Encoded, Message, Part

PADDING = -1
"""Turn of a padding token."""


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
        The row, and the turn of each of its tokens.

    Raises:
        ValueError: the conversations do not begin alike, or an answer has no supervised token.
    """
    begin = pieces[0].input_ids
    shared = len(begin) - begin[::-1].index(context)
    ids, labels, turns = begin[:shared], pieces[0].labels[:shared], [0] * shared
    for turn, piece in enumerate(pieces, 1):
        if piece.input_ids[:shared] != begin[:shared] or context in piece.input_ids[shared:]:
            raise ValueError(
                f"question {turn} does not begin with the images as the first does; they cannot stand apart"
            )
        if all(label == chat.IGNORE for label in piece.labels):
            raise ValueError(
                f"answer {turn} has no supervised token; keep the template's control tokens out of its text"
            )
        ids = ids + piece.input_ids[shared:]
        labels = labels + piece.labels[shared:]
        turns = turns + [turn] * (len(piece.input_ids) - shared)
    return Encoded(input_ids=ids, labels=labels), turns
