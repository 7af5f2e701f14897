"""An encoder alone as what a run trains: where it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mini_internvl.recipes.fields import RecipeError

SIZES = ("300M", "6B")


@dataclass(frozen=True, kw_only=True)
class StudentRecipe:
    """An encoder that trains alone, without projector and language model: on pictures of one tile each."""

    start: str = ""
    """Folder or hub id of an InternViT, of a whole model whose encoder is taken, or of a CLIP model; empty for random
    weights."""
    size: str = "300M"
    """Shape of random weights: ``300M`` or ``6B``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of an InternViT's config.json that differ from those of ``size``."""
    layers: int | tuple[int, ...] | None = None
    """Blocks of ``start`` that are taken: so many, evenly from first to last, or these numbers, from 0. All when left
    out."""
    image_size: int | None = None
    """Side of the pictures in pixels, where it is not that of ``start`` or ``config``: the position table is
    resized."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise RecipeError(f'student.size is "{self.size}"; known: {", ".join(SIZES)}')
        if self.start and self.config:
            raise RecipeError("student.config is of random weights; leave it out, or leave start out")
        if not self.start and self.layers is not None:
            raise RecipeError("student.layers picks blocks of start; give it, or num_hidden_layers in config")
        chosen = (0,) if self.layers is None else self.layers
        least = min(chosen, default=-1) if isinstance(chosen, tuple) else chosen - 1
        if least < 0:
            raise RecipeError(f"student.layers is {self.layers}; give a number of blocks, or their numbers from 0")
        if self.image_size is not None and self.image_size < 1:
            raise RecipeError(f"student.image_size is {self.image_size}; it must be at least 1")
