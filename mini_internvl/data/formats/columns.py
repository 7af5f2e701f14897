"""Rows of plain columns, as tables hold them: an image, a question, an answer, perhaps options.

Columns that mean the same, in any case:

* image: ``image``, ``images``, ``image_path``, ``img``, ``img_path``, ``picture``, ``file_name``, ``filename``,
  ``path``, ``file``, the first that holds something; a path, a data URL, base64, bytes, or a list of these, also as the
  text of a Python list.
* question: ``question``, ``prompt``, ``instruction``, ``query``. Without one, "Describe the image." asks for an answer
  under ``caption`` or ``text``, and "What does the image show? Answer with one word or short phrase." for one under
  ``label`` or ``class``.
* answer: ``answer``, ``answers``, ``response``, ``output``, ``caption``, ``label``, ``class``, ``text``. Of a list of
  answers the most frequent counts, of equal ones the first.
* options: ``A`` to ``J``, or a list of at most 26 under ``options`` or ``choices``; they follow the question, one a
  line. The answer is a letter, an option's text or, as a number beside a list, its place from 0.

Numbers are texts as they stand.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mini_internvl.data.formats._turns import absent, example, images, shown, text, with_images
from mini_internvl.metrics.list_text import read_list
from mini_internvl.records import Message

IMAGE = ("image", "images", "image_path", "img", "img_path", "picture", "file_name", "filename", "path", "file")
QUESTION = ("question", "prompt", "instruction", "query")
ANSWER = ("answer", "answers", "response", "output", "caption", "label", "class", "text")
LISTED = ("options", "choices")
LETTERS = tuple(string.ascii_uppercase[:10])  # that are columns
UNASKED = {
    "caption": "Describe the image.",
    "text": "Describe the image.",
    "label": "What does the image show? Answer with one word or short phrase.",
    "class": "What does the image show? Answer with one word or short phrase.",
}
"""Answers that need no question -> the question that asks for them."""
CHOOSE = "Answer with the option's letter from the given choices directly."
_NAMES = (*IMAGE, *QUESTION, *ANSWER, *LISTED)
KEYS = frozenset(
    {spelled for name in _NAMES for spelled in (name, name.capitalize(), name.title(), name.upper())}
    | {*LETTERS, "index", "question_id", "image_id", "split", "category", "width", "height"}
)
_LONGEST_PATH = 1024  # characters; a longer text is base64
_LETTER = re.compile(r"\(?([A-Z])[.):]?")


def reads(keys: frozenset[str]) -> bool:
    known = {key.lower() for key in keys}
    if known & {"conversations", "messages", "history"} or {"query", "response"} <= known:
        return False
    asked = known & {*QUESTION} or known & {*UNASKED}
    return bool(asked and known & {*ANSWER} and known & {*IMAGE, *QUESTION})


def messages(raw: Mapping[str, Any]) -> list[Message]:
    columns = {key if key in LETTERS else key.lower(): value for key, value in raw.items()}
    said = next((name for name in ANSWER if not absent(columns.get(name))), None)
    if said is None:
        there = next(name for name in ANSWER if name in columns)
        raise ValueError(f"{there} is {shown(columns[there])}; it must hold the answer")
    asked = next((name for name in QUESTION if not absent(columns.get(name))), None)
    if asked is None and said not in UNASKED:
        there = next((name for name in QUESTION if name in columns), "question")
        raise ValueError(f"{there} is {shown(columns.get(there))}; it must hold the question of {said}")
    question = UNASKED[said] if asked is None else text(columns[asked], asked)
    if asked is None and said in ("label", "class") and _plain(columns[said], said).strip().isdecimal():
        raise ValueError(f"{said} is {shown(columns[said])}, the number of a class; write the class's name")
    choices = _choices(columns)
    answer = _answer(columns[said], said, choices, listed=any(not absent(columns.get(name)) for name in LISTED))
    if choices:
        lines = [question, *(f"{letter}. {choice}" for letter, choice in choices.items())]
        question = "\n".join(lines) + ("" if CHOOSE in question else f"\n{CHOOSE}")
    shows = next((name for name in IMAGE if not absent(columns.get(name))), "")
    beside = images({shows: image(columns[shows])}, shows) if shows else []
    return with_images([("user", question), ("assistant", answer)], beside)


def _choices(columns: Mapping[str, Any]) -> dict[str, str]:
    """Letter -> option."""
    listed = next((columns[name] for name in LISTED if not absent(columns.get(name))), None)
    if isinstance(listed, str):
        found = read_list(listed)
        if found is None:
            raise ValueError(f"options is {shown(listed)}; it must be a list of texts")
        listed = found
    if isinstance(listed, Sequence):
        if len(listed) > len(string.ascii_uppercase):
            raise ValueError(
                f"there are {len(listed)} options; {len(string.ascii_uppercase)} are the most, a letter each"
            )
        lettered = zip(string.ascii_uppercase, listed, strict=False)
        return {letter: _plain(option, "an option") for letter, option in lettered}
    return {letter: _plain(columns[letter], letter) for letter in LETTERS if not absent(columns.get(letter))}


def _answer(value: Any, name: str, choices: Mapping[str, str], *, listed: bool) -> str:
    if name == "answers" and isinstance(value, str):
        value = read_list(value) or value
    if isinstance(value, list | tuple):
        texts = [_plain(one, name) for one in value]
        return Counter(texts).most_common(1)[0][0]
    if listed and type(value) is int and 0 <= value < len(choices):
        return tuple(choices)[value]
    said = _plain(value, name)
    if not choices:
        return said
    letter = _LETTER.fullmatch(said.strip())
    if letter and letter[1] in choices:
        return letter[1]
    same = [letter for letter, choice in choices.items() if choice.strip().lower() == said.strip().lower()]
    if len(same) != 1:
        raise ValueError(f"{name} is {shown(said)}; it must be one of the options {', '.join(choices)}, or its text")
    return same[0]


def _plain(value: Any, name: str) -> str:
    """A text, or a number as text."""
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return str(value)
    return text(value, name)


def image(value: Any) -> Any:
    """The value of an image column, base64 as bytes and the text of a list as a list."""
    if isinstance(value, list | tuple):
        return [image(one) for one in value]
    if not isinstance(value, str):
        return value
    if value.startswith("["):
        return read_list(value) or value
    if len(value) <= _LONGEST_PATH or value.startswith("data:"):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ValueError(f"image is {shown(value)}; a text this long must be base64") from None


EXAMPLE = (
    {"id": 7, "image_path": "ship.jpg", "question": "Which colour?", "A": "red", "B": "blue", "answer": "blue"},
    example(["ship.jpg", f"Which colour?\nA. red\nB. blue\n{CHOOSE}"], "B", id="7"),
)
