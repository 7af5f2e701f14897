"""Pictures of text -> training rows, by optical character recognition (stage 1 of the paper; extra ``ocr``).

``pictures`` finds the pictures of a source, ``reader`` reads one of them by RapidOCR, ``order`` puts its lines in
reading order, ``questions`` asks about them, ``folder`` keeps what was read and writes the rows, ``reviews`` keeps what
a person says of them. Unusual: all that was read is kept with its confidence, so that other limits and verdicts need no
second reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the upright picture


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of text as it was found in a picture."""

    text: str
    box: Box
    confidence: float = 1.0  # 0 to 1; 1 where a person wrote it

    @classmethod
    def of(cls, raw: Any) -> Line:
        """The line that a JSON file holds; ValueError where it is none."""
        if not isinstance(raw, dict) or not isinstance(raw.get("text"), str) or not _is_box(raw.get("box")):
            raise ValueError("a line has a text and a box of four whole numbers")
        return cls(text=raw["text"], box=tuple(raw["box"]), confidence=float(raw.get("confidence", 1.0)))


@dataclass(frozen=True, kw_only=True)
class PictureText:
    """What was read in one picture."""

    name: str  # unique in its source
    image: str  # path, from the folder that keeps it where it lies below
    width: int  # pixels, upright
    height: int
    lines: Sequence[Line]  # in reading order, of any confidence

    def as_json(self) -> dict[str, Any]:
        """The record of a JSON file."""
        return {**asdict(self), "lines": [{**asdict(line), "box": list(line.box)} for line in self.lines]}

    @classmethod
    def of(cls, raw: dict[str, Any]) -> PictureText:
        """The record that :meth:`as_json` gave; ValueError where a field is missing or odd."""
        try:
            lines = tuple(Line.of(line) for line in raw["lines"])
            name, image, width, height = (raw[key] for key in ("name", "image", "width", "height"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no text of a picture ({error})") from None
        return cls(name=str(name), image=str(image), width=int(width), height=int(height), lines=lines)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(side) is int for side in value)
