"""Distillation: a run whose recipe trains an encoder alone on the features of a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mini_internvl.recipes import Recipe, RecipeError
from mini_internvl.train.run import run_recipe


def distil(recipe: Recipe, folder: str | Path, **options: Any) -> Path:
    """Run or continue a distillation; ``options`` and errors are those of :func:`run_recipe`.

    Returns:
        The folder of the best student, a bare InternViT: ``load_vision`` reads it, ``minivl build`` joins it.

    Raises:
        RecipeError: the recipe trains a whole model, or learns from no teacher.
    """
    check(recipe)
    return run_recipe(recipe, folder, **options)


def check(recipe: Recipe) -> None:
    """RecipeError where a recipe is no distillation."""
    if recipe.student is None:
        raise RecipeError(
            f"{recipe.name} trains a whole model (minivl train); a distillation has student: in its recipe"
        )
    if plain := [stage.name for stage in recipe.stages if "features" not in stage.loss_settings()]:
        raise RecipeError(f"stage {plain[0]} has no teacher; write loss: {{features: {{teacher: FOLDER}}}}")
