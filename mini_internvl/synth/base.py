"""What a drawing module hands back, shared by all kinds."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..records import PatchAnnotation


@dataclass(frozen=True)
class QA:
    """One question about the image with its answer."""

    question: str
    answer: str
    """Short and exact."""
    task: str
    """What is asked, for scores per task, for instance ``"count"`` or ``"read"``."""
    main: bool = True
    """Whether test samples may ask it; helper questions of training are not main."""


Drawn = tuple[Image.Image, list[QA]]
"""What ``draw`` of a kind returns."""
Annotated = tuple[Image.Image, list[QA], Sequence[PatchAnnotation]]
"""What ``draw_annotated`` of a kind returns."""


def wordings(kind: str) -> dict[str, tuple[str, ...]]:
    """The ways to ask each question of a kind, from ``questions.toml``."""
    questions = tomllib.loads(Path(__file__).with_name("questions.toml").read_text("utf-8"))
    return {name: tuple(ways) for name, ways in questions[kind].items()}
