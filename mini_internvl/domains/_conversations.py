"""Conversations about one image in LLaVA's rows, as training samples: shared by the instruction sets.

Unusual: LLaVA showed an image in the middle of a square, and boxes in data made for it are shares of that square's
sides; :func:`of_square` makes them boxes of the image.
Source: ``expand2square`` in ``llava/mm_utils.py`` of haotian-liu/LLaVA, and its issues 606 and 1833.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._questions import Images, fault, number
from mini_internvl.data import Fault, Row
from mini_internvl.data.rows import to_sample
from mini_internvl.inputs.boxes import to_thousand
from mini_internvl.records import Message, Sample

Said = Sequence[tuple[str, str]]  # (role, text) of the turns
Rewrite = Callable[[Said, str], Sequence[str]]  # turns and the path of their image -> the texts as they are trained
SLACK = 0.01  # of a square's side that a box may leave the image by: boxes are written with two digits


def conversation(
    row: Row, images: Images, *, source: str, name: str = "", rewrite: Rewrite | None = None, bare: bool = False
) -> Sample | Fault:
    """The sample of a row, its id ``name`` or the row's number, since ids of the files come again.

    Args:
        row: with ``conversations``, and ``image``, the name of one.
        images: where the image is looked for.
        source: name of the data set.
        name: id of the sample.
        rewrite: what becomes of the texts, or ``None``; ValueError says what is wrong with one.
        bare: whether a row may have no image.
    """
    raw, place = dict(row.raw), ""
    if not bare or raw.get("image"):
        try:
            found = images.shown(raw.get("image"))
        except ValueError as error:
            return fault(row, str(error))
        if isinstance(found, bytes):
            return fault(row, "image holds no name")
        raw["image"] = place = found
    sample = to_sample(replace(row, raw=raw), root=Path(), format="internvl", source=source)
    if isinstance(sample, Fault):
        return sample
    try:
        messages = _rewritten(sample.messages, place, rewrite)
    except ValueError as error:
        return fault(row, str(error))
    return replace(sample, id=name or number(row), messages=messages)


def _rewritten(messages: Sequence[Message], place: str, rewrite: Rewrite | None) -> list[Message]:
    said = [(message["role"], _text(message["content"])) for message in messages]
    texts = [text for _, text in said] if rewrite is None else rewrite(said, place)
    if not all(text.strip() for text in texts):
        raise ValueError("a turn holds no text")
    found: list[Message] = []
    for message, text in zip(messages, texts, strict=True):
        content: Any = message["content"]
        new = text if isinstance(content, str) else [*content[:-1], {**content[-1], "text": text}]
        found.append({"role": message["role"], "content": new})
    return found


def _text(content: Any) -> str:
    return str(content if isinstance(content, str) else content[-1]["text"])


def of_square(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """Shares of the square around an image -> thousandths of the image's sides.

    Args:
        box: x1, y1, x2, y2 from 0 to 1.
        width: of the image in pixels.
        height: the same.

    Raises:
        ValueError: corners are swapped, or the box leaves the image by more than SLACK.
    """
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    x1, y1, x2, y2 = (value * side - (left, top)[place % 2] for place, value in enumerate(box))
    slack = SLACK * side + 1
    if min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack:
        raise ValueError(f"the box {list(box)} leaves the image of {width}x{height} in the middle of its square")
    return to_thousand((x1, y1, x2, y2), width, height)


def example_row(image: str, *turns: str) -> dict[str, Any]:
    """A row, for the examples: questions and answers in turn."""
    spoken = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(turns)]
    return {"id": image, "image": image, "conversations": spoken}


def expected(source: str, name: str, image: str, *turns: str) -> Sample:
    """The sample of an example: questions and answers in turn; without an image where ``image`` is ""."""
    first: Any = [{"type": "image", "image": image}, {"type": "text", "text": turns[0]}] if image else turns[0]
    messages: list[Message] = [
        {"role": ("user", "assistant")[number % 2], "content": said} for number, said in enumerate([first, *turns[1:]])
    ]
    return Sample(id=name, messages=messages, source=source)
