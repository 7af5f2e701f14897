"""What a drawing module hands back, shared by all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
