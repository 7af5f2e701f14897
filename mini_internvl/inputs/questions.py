"""Questions of a sample, each as it is asked when it stands alone, and what makes two questions of a kind."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mini_internvl.inputs.messages import ImagePart, Messages, Turn, image_parts, normalise
from mini_internvl.records import Sample

WORDS = 4  # first words of a question that tell its kind where no other question is the same

_NAMED = re.compile(r"<ref>.*?</ref>|<box>.*?</box>|<c\d*,[^>]*>|\"[^\"]*\"|“[^”]*”", re.DOTALL)
_OPTION = re.compile(r"^\(?[A-Z][.):].*$", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def asked(sample: Sample) -> Iterator[tuple[tuple[Turn, ...], str]]:
    """Each answered question as the sample trains it, with its answer.

    A question comes with the turns before it, in an independent sample with the images alone. ValueError as of
    :func:`split_questions`.
    """
    alone = split_questions(sample.messages) if sample.independent else [normalise(sample.messages)]
    for turns in alone:
        for place, turn in enumerate(turns):
            if turn.role == "assistant" and place and turns[place - 1].role == "user":
                yield turns[:place], turn.text


def kinds(text: str) -> list[str]:
    """The kinds of question that a text is of, from the narrowest to the widest, "" for all questions.

    Questions are of the narrowest kind when they differ only in numbers, quoted or tagged phrases and options.
    """
    words = _NUMBER.sub("#", _OPTION.sub("", _NAMED.sub("<>", text))).lower().split()
    return list(dict.fromkeys([" ".join(["=", *words]), " ".join(words[:WORDS]), " ".join(words[:1]), ""]))


def split_questions(messages: Messages) -> list[tuple[Turn, ...]]:
    """One conversation for each question, all with the images of the first and the system message, if any.

    What holds one question or no image stays as it is, the only element.

    Raises:
        ValueError: the first question does not begin with its images, a later one has its own, or a question has not
            exactly one answer.
    """
    whole = normalise(messages)
    system = [turn for turn in whole[:1] if turn.role == "system"]
    turns = whole[len(system) :]
    if len(turns) <= 2 or not image_parts(whole):
        return [whole]
    if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("independent questions each have one answer: user and assistant alternate")
    images, space, first = _split(turns[0])
    alone = []
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        if question is not turns[0] and question.images:
            raise ValueError("a later question has an image of its own; independent questions share those of the first")
        text = first if question is turns[0] else question.text
        alone.append((*system, Turn(role="user", parts=(*images, space + text)), answer))
    return alone


def _split(turn: Turn) -> tuple[tuple[str | ImagePart, ...], str, str]:
    """The first question's parts up to its last image, the white space after it, and the rest of its text."""
    last = max((place for place, part in enumerate(turn.parts) if isinstance(part, ImagePart)), default=-1)
    if last < 0 or (isinstance(turn.parts[0], str) and not any(image.placed for image in turn.images)):
        raise ValueError("questions are independent only if the first begins with all images; put its text after them")
    text = "".join(part for part in turn.parts[last + 1 :] if isinstance(part, str))
    question = text.lstrip()
    if not question:
        raise ValueError("questions are independent only if the first begins with all images; no text after the last")
    return turn.parts[: last + 1], text[: len(text) - len(question)], question
