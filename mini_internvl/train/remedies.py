"""Settings that make a run fit into memory, cheapest first, and what an error for want of memory means."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from mini_internvl.recipes import BLOCKS, LoraRecipe, Recipe, StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train import trace
from mini_internvl.train.plan import Machine, Planner, StagePlan


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """Changes to a recipe, on top of those before it."""

    overrides: tuple[str, ...]  # to add to the command line
    cost: str  # what they cost beside memory
    plans: tuple[StagePlan, ...]  # of the changed recipe

    @property
    def total(self) -> float:
        """Bytes of its largest stage."""
        return max(plan.total for plan in self.plans)


def find_remedies(planner: Planner, recipe: Recipe, limit: float) -> list[Remedy]:
    """Changes in the order in which they are worth trying, up to the first after which all stages fit."""
    found: list[Remedy] = []
    for changed, overrides, cost in _changes(recipe):
        plans = tuple(planner.plan(changed))
        found.append(Remedy(overrides=overrides, cost=cost, plans=plans))
        if found[-1].total <= limit:
            break
    return found


def _changes(recipe: Recipe) -> Iterator[tuple[Recipe, tuple[str, ...], str]]:
    """Recipes, each changed further than the one before; all overrides of one, and what the last change costs."""
    done: tuple[str, ...] = ()

    def settle(stages: list[StageRecipe], names: list[str]) -> None:
        nonlocal recipe, done
        recipe = replace(recipe, stages=tuple(stages))
        done = (*(one for one in done if one.split("=")[0] not in {name.split("=")[0] for name in names}), *names)

    largest = max(stage.micro_batch for stage in recipe.stages if stage.pack is None) if _padded(recipe) else 1
    while largest > 1:
        largest = -(-largest // 2)
        stages, names = [], []
        for number, stage in enumerate(recipe.stages):
            if stage.pack is None and stage.micro_batch > largest:
                stage = replace(stage, micro_batch=largest)
                names.append(f"stages.{number}.micro_batch={largest}")
            stages.append(stage)
        settle(stages, names)
        yield recipe, done, "the result stays the same; small micro batches use a GPU less well"
    if any(set(stage.checkpointing) < set(BLOCKS) for stage in recipe.stages):
        names = [f"stages.{number}.checkpointing=[{','.join(BLOCKS)}]" for number in range(len(recipe.stages))]
        settle([replace(stage, checkpointing=BLOCKS) for stage in recipe.stages], names)
        yield recipe, done, "the result stays the same; blocks that train compute their forward pass twice"
    if not _frozen(recipe):
        stages, names = [], []
        for number, stage in enumerate(recipe.stages):
            rest = {part: settings for part, settings in stage.parts().items() if part != "vision"}
            if "vision" in stage.parts() and rest:
                given = stage.train if isinstance(stage.train, Mapping) else None
                kept = {part: given[part] for part in rest} if given else tuple(rest)
                stage = replace(stage, train=kept)
                names.append(f"stages.{number}.train={json.dumps(kept, separators=(',', ':'))}")
            stages.append(stage)
        settle(stages, names)
        yield recipe, done, "the encoder no longer adapts to images unlike photos and documents"
    if recipe.model and recipe.lora is None:
        recipe = replace(recipe, lora=LoraRecipe())
        done = (*done, "lora.rank=16")
        yield recipe, done, "adapters instead of the weights: weaker where boxes are learnt; raise lr to about 2e-4"
    while (most := max(stage.max_tiles for stage in recipe.stages)) > 1:
        most = -(-most // 2)
        names = [f"stages.{n}.max_tiles={most}" for n, one in enumerate(recipe.stages) if one.max_tiles > most]
        settle([replace(stage, max_tiles=min(stage.max_tiles, most)) for stage in recipe.stages], names)
        yield recipe, done, "less detail is seen of large images"


def _padded(recipe: Recipe) -> bool:
    return any(stage.pack is None for stage in recipe.stages)


def _frozen(recipe: Recipe) -> bool:
    return not any("vision" in stage.parts() and len(stage.parts()) > 1 for stage in recipe.stages)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU or the computer has no memory left."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )


def explain_out_of_memory(error: BaseException, recipe: Recipe, stage: StageRecipe, batch: Batch) -> str:
    """What took the memory by the plan, on which samples, and the setting to change."""
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    machine = Machine(name="", kind="cuda" if on_gpu else "cpu", flops=1.0, note="")
    plan = Planner(machine).plan_stage(recipe, stage, batch)
    part = max(plan.memory, key=lambda name: plan.memory[name])
    number, tiles = recipe.stages.index(stage), len(batch.tiles)
    names = ", ".join(batch.sample_ids[:5]) + (
        f" and {len(batch.sample_ids) - 5} more" if len(batch.sample_ids) > 5 else ""
    )
    if stage.pack is not None:
        advice = f"lower stages.{number}.pack.tokens (now {stage.pack.tokens}) and pack.tiles ({stage.pack.tiles})"
    elif len(batch.sample_ids) > 1:
        advice = f"lower stages.{number}.micro_batch (now {stage.micro_batch})"
    elif "vision" in stage.parts() and len(stage.parts()) > 1 and part != trace.DECODER:
        advice = (
            f"leave vision out of stages.{number}.train, or lower stages.{number}.max_tiles (now {stage.max_tiles})"
        )
    else:
        advice = f"lower stages.{number}.max_tiles (now {stage.max_tiles}) or stages.{number}.max_length"
    return (
        f"out of memory in stage {stage.name} on samples {names} ({batch.input_ids.numel():,} tokens, {tiles} tiles): "
        f"by the plan the step needs {plan.total / 1e9:.1f} GB, the largest part for {part} ("
        f"{plan.memory[part] / 1e9:.1f} GB); {advice}; minivl plan RECIPE --memory says what fits"
    )
