"""A router for a model that has none, and when it gives a tile few tokens."""

from __future__ import annotations

from dataclasses import dataclass

from mini_internvl.recipes.fields import RecipeError


@dataclass(frozen=True, kw_only=True)
class RouterRecipe:
    """A second projector and a router, which the model begins with if it has none; thresholds as in config.json."""

    relative: float = 0.0
    """Few tokens go to tiles whose probability is above this quantile of the conversation's tiles, ..."""
    absolute: float = 0.5
    """... and not below this."""

    def __post_init__(self) -> None:
        for name in ("relative", "absolute"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"router.{name} is {getattr(self, name)}; it must be from 0 to 1")
