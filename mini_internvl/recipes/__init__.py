"""Recipes: a whole run as data. YAML in, dotted overrides on top, every field checked before any work starts.

``run`` holds the whole recipe, ``stage``, ``source``, ``lora``, ``router`` and ``student`` its parts, one field each
with what it means; ``fields`` makes these dataclasses from plain data. Importing this package imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mini_internvl.recipes.fields import MAY_CHANGE, RecipeError, from_dict
from mini_internvl.recipes.lora import LoraRecipe, LoraTargets
from mini_internvl.recipes.router import RouterRecipe
from mini_internvl.recipes.run import Recipe
from mini_internvl.recipes.source import SourceRecipe
from mini_internvl.recipes.stage import BLOCKS, FLASH_PARTS, PARTS, LossSettings, PackRecipe, PartRecipe, StageRecipe
from mini_internvl.recipes.student import StudentRecipe

__all__ = [
    "BLOCKS", "FLASH_PARTS", "MAY_CHANGE", "PARTS", "LoraRecipe", "LoraTargets", "LossSettings", "PackRecipe",
    "PartRecipe", "Recipe", "RecipeError", "RouterRecipe", "SourceRecipe", "StageRecipe", "StudentRecipe",
    "differences", "extends", "from_dict", "load", "to_dict",
]  # fmt: skip


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply ``a.b=c`` overrides (a number after the dot indexes a list: ``stages.0.lr=1e-4``).

    RecipeError: the file is missing or no YAML, or a field is unknown, missing or wrong.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of fields")
    for override in overrides:
        _override(raw, override)
    try:
        return from_dict(Recipe, raw)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def extends(before: Recipe, name: str, old: Any, new: Any) -> bool:
    """Whether a difference gives the last stage more steps, or more sources after those it has."""
    last = f"stages.{len(before.stages) - 1}"
    return (name == f"{last}.steps" and new > old) or (name == f"{last}.data" and new[: len(old)] == old)


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f'override "{text}" has no "="; write a.b=value')
    *parents, last = key.split(".")
    try:
        new = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f'override "{text}": the value is not valid YAML') from None
    target: Any = raw
    try:
        for name in parents:
            if isinstance(target, dict) and target.get(name) is None:
                target[name] = {}  # of a field that the file leaves out; from_dict refuses unknown ones
            target = target[int(name)] if isinstance(target, list) else target[name]
        name = last
        target[int(last) if isinstance(target, list) else last] = new
    except (KeyError, IndexError, ValueError, TypeError):
        raise RecipeError(f'override "{text}": the recipe has no "{name}" there') from None


def to_dict(value: Any) -> Any:
    """A recipe as plain lists and dictionaries, for the run's records; fields that are None are left out."""
    return dataclasses.asdict(value, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})


def differences(before: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old, new) of what would change the result of a run that goes on with another recipe.

    Fields marked :data:`MAY_CHANGE` may.
    """
    if dataclasses.is_dataclass(before) and type(before) is type(now):
        for field in dataclasses.fields(before):
            if not field.metadata.get("free"):
                pair = getattr(before, field.name), getattr(now, field.name)
                yield from differences(*pair, f"{where}.{field.name}".lstrip("."))
    elif isinstance(before, tuple) and isinstance(now, tuple) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, f"{where}.{i}")
    elif before != now:
        yield where, before, now
