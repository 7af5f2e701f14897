"""Images that we draw, with questions and exact answers: all of nano's training data.

``make(kind, seed, index, split)`` is a pure function of its arguments (and of the fonts and tables installed): the
same call draws the same image on every run. Training samples are conversations of several turns about one image,
because the vision part of a step is paid once per image; test samples ask one question and use fonts, words, values
and tables that no training sample uses.
"""

from __future__ import annotations

import hashlib
import importlib
import random
from types import ModuleType
from typing import Any

from PIL import Image

from ..plugins import list_names
from ..records import Message, Part, Sample
from .base import QA, Annotated, Drawn

__all__ = ["KINDS", "QA", "draw", "draw_labelled", "labelled_kinds", "make", "missing"]

SPLITS = ("train", "test")
MAX_TURNS = 12  # most questions of a training sample
MAX_TILES = 6  # tile limit that the image sizes are chosen for (112-pixel tiles)
KINDS: tuple[str, ...] = tuple(list_names("synth.kinds"))
"""Names that ``make`` takes: one module each in ``mini_internvl/synth/kinds``."""


def draw(kind: str, seed: int, index: int, split: str = "train") -> Drawn:
    """The image (RGB) and the questions of one sample, with their tasks.

    Test samples have exactly one question. Raises ValueError for an unknown kind or split and for a kind whose data
    package is not installed.
    """
    return _draw_annotated(kind, seed, index, split)[:2]


def draw_labelled(kind: str, seed: int, index: int, split: str = "train") -> tuple[Image.Image, str | None]:
    """The image of a sample and its class, as the kind's ``label`` names it; ``None`` for an image without one.

    Raises ValueError for a kind whose images have no classes, and like ``draw``.
    """
    if kind in KINDS and not hasattr(_module(kind), "label"):
        raise ValueError(f"images of {kind} have no classes; kinds that have: {', '.join(labelled_kinds())}")
    image, questions, annotations = _draw_all(kind, seed, index, split)[0]
    return image, _module(kind).label(questions, annotations)


def labelled_kinds() -> list[str]:
    """Kinds whose images have a class: their modules say by ``label`` which."""
    return [kind for kind in KINDS if hasattr(_module(kind), "label")]


def _draw_annotated(kind: str, seed: int, index: int, split: str) -> Annotated:
    """As ``draw``, and what stands where in the image for the kinds that annotate it."""
    (image, questions, annotations), rng = _draw_all(kind, seed, index, split)
    if split == "test":
        return image, [rng.choice([q for q in questions if q.main])], annotations
    rng.shuffle(questions)
    return image, questions[:MAX_TURNS], annotations


def _draw_all(kind: str, seed: int, index: int, split: str) -> tuple[tuple[Image.Image, list[QA], Any], random.Random]:
    """An image with all its questions and annotations, and the generator to go on with."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of image {kind!r}; known: {', '.join(KINDS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use 'train' or 'test'")
    digest = hashlib.blake2b(f"{kind}/{seed}/{index}/{split}".encode(), digest_size=16).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    module = _module(kind)
    if hasattr(module, "draw_annotated"):
        image, questions, annotations = module.draw_annotated(rng, split)
    else:
        (image, questions), annotations = module.draw(rng, split), ()
    return (image, questions, annotations), rng


def _module(kind: str) -> ModuleType:
    return importlib.import_module(f".kinds.{kind}", __package__)


def annotated_kinds() -> list[str]:
    """Kinds whose images come with patch annotations."""
    return [kind for kind in KINDS if hasattr(_module(kind), "draw_annotated")]


def make(kind: str, seed: int, index: int, split: str = "train") -> Sample:
    """Questions and answers about one drawn image, which is a PIL image in the first user turn.

    In nine of ten samples the questions are independent, each learnt as a first question; the tenth is a conversation.
    ``index`` counts the samples of one (kind, seed); raises like ``draw``.
    """
    image, questions, annotations = _draw_annotated(kind, seed, index, split)
    messages: list[Message] = []
    for turn, qa in enumerate(questions):
        first: list[Part] = [{"type": "image", "image": image}, {"type": "text", "text": qa.question}]
        messages.append({"role": "user", "content": first if turn == 0 else qa.question})
        messages.append({"role": "assistant", "content": qa.answer})
    return Sample(id=f"{kind}-{split}-{seed}-{index}", messages=messages, source=f"synth-{kind}", max_tiles=MAX_TILES,
                  patch_annotations=annotations, independent=index % 10 > 0)  # fmt: skip


def missing(kind: str) -> str | None:
    """Why a kind cannot be drawn on this computer, with the line that installs what it needs; ``None`` if it can."""
    try:
        draw(kind, 0, 0)
    except ModuleNotFoundError as error:
        return str(error)
    return None
