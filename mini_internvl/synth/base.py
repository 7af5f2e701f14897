"""What a drawing module hands back, shared by all kinds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QA:
    """One question about the image with its answer."""

    question: str
    """Asked in plain words."""
    answer: str
    """Short and exact."""
    task: str
    """What is asked, for scores per task, for instance ``"count"`` or ``"read"``."""
    main: bool = True
    """Whether test samples may ask it; helper questions of training are not main."""
