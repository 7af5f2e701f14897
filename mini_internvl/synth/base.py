"""What a drawing module hands back, shared by all kinds."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from ..records import PatchAnnotation


@dataclass(frozen=True)
class QA:
    """One question about the image with its short, exact answer.

    Scores are taken per ``task`` (``"count"``, ``"read"``). Test samples ask only main questions; the others help
    training.
    """

    question: str
    answer: str
    task: str
    main: bool = True


Drawn = tuple[Image.Image, list[QA]]  # what ``draw`` of a kind returns
Annotated = tuple[Image.Image, list[QA], Sequence[PatchAnnotation]]  # what ``draw_annotated`` of a kind returns


def answer_of(questions: Sequence[QA], task: str) -> str | None:
    """The answer to the first question of a task; ``None`` where it is not asked."""
    return next((question.answer for question in questions if question.task == task), None)


def package_folder(name: str) -> Path | None:
    """Where an installed package keeps its files, without importing it; ``None`` if there is no such package."""
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def wordings(kind: str) -> dict[str, tuple[str, ...]]:
    """The ways to ask each question of a kind, from ``questions.toml``."""
    questions = tomllib.loads(Path(__file__).with_name("questions.toml").read_text("utf-8"))
    return {name: tuple(ways) for name, ways in questions[kind].items()}
