"""What a person says of the text that was read: accepted, corrected or rejected, picture by picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.data import DataError, Fault
from mini_internvl.data.files import scan
from mini_internvl.data.ocr import Line, PictureText
from mini_internvl.files import write_text

REVIEWS = "reviews.jsonl"
ACCEPT, CORRECT, REJECT = VERDICTS = ("accept", "correct", "reject")


@dataclass(frozen=True, kw_only=True)
class Review:
    """The last verdict on one picture."""

    verdict: str
    lines: Sequence[Line] = ()  # of a corrected picture, all of them, in reading order

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"the verdict is {self.verdict!r}; it must be one of {', '.join(VERDICTS)}")
        if (self.verdict == CORRECT) != bool(self.lines):
            raise ValueError("a corrected picture has lines, no other has; reject one whose text is all wrong")


def read_reviews(folder: Path) -> dict[str, Review]:
    """Name of a picture -> its review; DataError names a line that is none."""
    path = folder / REVIEWS
    found: dict[str, Review] = {}
    if not path.exists():
        return found
    for row in scan(path):
        if isinstance(row, Fault):
            raise DataError(f"{row}; mend the line or take it out")
        try:
            found[str(row.raw["name"])] = _review(row.raw)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}, {row.place}: no review ({error}); mend the line or take it out") from None
    return found


def _review(raw: Mapping[str, Any]) -> Review:
    return Review(verdict=raw["verdict"], lines=tuple(Line.of(line) for line in raw.get("lines", ())))


def write_reviews(folder: Path, reviews: Mapping[str, Review]) -> None:
    """Write all reviews, whole or not at all, in the order in which they were first given."""
    lines = []
    for name, review in reviews.items():
        record: dict[str, Any] = {"name": name, "verdict": review.verdict}
        if review.lines:
            record["lines"] = [{"text": line.text, "box": list(line.box)} for line in review.lines]
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(folder / REVIEWS, "".join(lines))


def reviewed(picture: PictureText, review: Review | None, min_confidence: float) -> Sequence[Line]:
    """The lines of a picture that hold: a person's where there are any, else those that were read with confidence.

    None of a picture that was rejected.
    """
    if review is not None and review.verdict == REJECT:
        return ()
    if review is not None and review.verdict == CORRECT:
        return review.lines
    return [line for line in picture.lines if line.confidence >= min_confidence]
