"""Settings that make a run fit into memory, cheapest first, and what an error for want of memory means."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mini_internvl.model import adapter as adapters
from mini_internvl.recipes import BLOCKS, LoraRecipe, PackRecipe, Recipe, RecipeError, StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train import trace
from mini_internvl.train.machines import Machine
from mini_internvl.train.nf4 import installed
from mini_internvl.train.plan import PROCESS, Planner, StagePlan

WORTH = 0.03  # share of the memory, the process left out, that a change must save if it does not make the run fit


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """Changes to a recipe, on top of those before it."""

    overrides: tuple[str, ...]  # to add to the command line, those of the changes before it included
    added: tuple[str, ...]  # those of this change
    cost: str  # what it costs beside memory
    plans: tuple[StagePlan, ...]  # of the changed recipe

    @property
    def total(self) -> float:
        """Bytes of its largest stage."""
        return max(plan.total for plan in self.plans)


def find_remedies(planner: Planner, recipe: Recipe, limit: float) -> list[Remedy]:
    """Changes in the order in which they are worth trying, up to the first after which all stages fit.

    One that does not help, or that the recipe or machine does not allow, is passed over. Where all fit at last, micro
    batches or packs that were made smaller on the way grow again as far as they may.
    """
    search = _Search(planner, recipe, limit)
    found: list[Remedy] = []
    for change in CHANGES:
        if search.fits:
            break
        if search.apply(change):
            found.append(search.remedy(change.cost, found))
    if search.fits and len(found) > 1 and search.grow():
        found.append(search.remedy("as large again as memory allows", found))
    return found


Stages = Mapping[int, Mapping[str, Any]]
"""Number of a stage -> settings that change."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One way to need less memory."""

    make: Callable[[Recipe, Sequence[StagePlan], Sequence[int]], Iterator[Recipe]]
    """From a recipe, its plans and the numbers of the stages that do not fit: changed recipes, each with less memory
    than those before it. Of several, the first that fits is taken, and where none does the last."""
    cost: str
    parts: Sequence[str] = ()
    """Of the memory, in which it saves; in any where they are left out."""
    low_bit: bool = False
    """Whether it takes bitsandbytes."""


class _Search:
    """A recipe that is changed until its stages fit."""

    def __init__(self, planner: Planner, recipe: Recipe, limit: float) -> None:
        self.planner, self.first, self.recipe, self.limit = planner, recipe, recipe, limit
        self.plans = self._plan(recipe)

    @property
    def fits(self) -> bool:
        return _total(self.plans) <= self.limit

    def apply(self, change: Change) -> bool:
        """Change the recipe if that saves memory."""
        large = [number for number, plan in enumerate(self.plans) if plan.total > self.limit]
        supported = installed() and self.planner.machine.kind in ("cpu", "cuda")
        useful = any(self._worth(plan, sum(plan.memory[part] for part in change.parts)) for plan in self.plans)
        if (change.low_bit and not supported) or (change.parts and not useful):
            return False
        try:
            changed = list(change.make(self.recipe, self.plans, large))
            best = self._best(changed) if changed else self.recipe
        except RecipeError:  # settings that exclude each other
            return False
        plans, largest = self._plan(best), max(self.plans, key=lambda plan: plan.total)
        if not self._worth(largest, largest.total - _total(plans)):
            return False
        self.recipe, self.plans = best, plans
        return True

    def grow(self) -> bool:
        """Take the largest micro batches and packs with which the changed recipe fits; whether they could grow."""
        names = ("micro_batch", "pack", "batch_size", "max_length")
        given = {number: {name: getattr(one, name) for name in names} for number, one in enumerate(self.first.stages)}
        whole = _changed(self.recipe, given)
        every, plans = range(len(whole.stages)), self._plan(self.first)
        shrunk = [whole, *_micro_batches(whole, plans, every), *_packs(whole, plans, every)]
        if whole == self.recipe or self.recipe not in shrunk:
            return False
        best = self._best(shrunk[: shrunk.index(self.recipe) + 1])
        if best == self.recipe:
            return False
        self.recipe, self.plans = best, self._plan(best)
        return True

    def remedy(self, cost: str, before: Sequence[Remedy]) -> Remedy:
        """Of the recipe as it now is."""
        overrides = tuple(_overrides(self.first, self.recipe))
        known = before[-1].overrides if before else ()
        added = tuple(one for one in overrides if one not in known)
        return Remedy(overrides=overrides, added=added, cost=cost, plans=tuple(self.plans))

    def _worth(self, plan: StagePlan, saved: float) -> bool:
        """Whether it is worth while to save so many bytes of a stage that does not fit."""
        least = WORTH * (plan.total - plan.memory[PROCESS])
        return plan.total > self.limit and saved >= min(least, plan.total - self.limit)

    def _best(self, recipes: Sequence[Recipe]) -> Recipe:
        """The first that fits, of recipes that need less and less; the last where none does."""
        first, last = 0, len(recipes) - 1
        if _total(self._plan(recipes[last])) > self.limit:
            return recipes[last]
        while first < last:
            middle = (first + last) // 2
            if _total(self._plan(recipes[middle])) <= self.limit:
                last = middle
            else:
                first = middle + 1
        return recipes[last]

    def _plan(self, recipe: Recipe) -> list[StagePlan]:
        return self.planner.plan(recipe, self.first)


def _total(plans: Sequence[StagePlan]) -> float:
    return max(plan.total for plan in plans)


def _changed(recipe: Recipe, stages: Stages) -> Recipe:
    made = [replace(stage, **stages.get(number, {})) for number, stage in enumerate(recipe.stages)]
    return replace(recipe, stages=tuple(made))


def _micro_batches(recipe: Recipe, plans: Sequence[StagePlan], large: Sequence[int]) -> Iterator[Recipe]:
    padded = {number: recipe.stages[number] for number in large if recipe.stages[number].pack is None}
    most = max((min(stage.micro_batch, stage.batch_size) for stage in padded.values()), default=1)
    while most > 1:
        most = -(-most // 2)
        yield _changed(recipe, {n: {"micro_batch": min(stage.micro_batch, most)} for n, stage in padded.items()})


def _packs(recipe: Recipe, plans: Sequence[StagePlan], large: Sequence[int]) -> Iterator[Recipe]:
    """Packs of a half, a fourth and so on, down to the longest sample and the one of most tiles."""
    before = recipe
    for halves in range(1, 12):
        changed: dict[int, dict[str, Any]] = {}
        for number in large:
            stage, most = recipe.stages[number], plans[number].most
            if (pack := stage.pack) is not None:
                tokens = max(pack.tokens >> halves, min(most.tokens, pack.tokens))
                tiles = max(pack.tiles >> halves, min(most.tiles, pack.tiles), 1)
                smaller = replace(pack, tokens=tokens, tiles=tiles)
                more = _samples(pack, plans[number]) / _samples(smaller, plans[number])
                changed[number] = {
                    "pack": smaller,
                    "batch_size": round(stage.batch_size * more),
                    "max_length": min(stage.max_length, tokens),
                }
        changed_recipe = _changed(recipe, changed)
        if changed_recipe == before:
            return
        yield changed_recipe
        before = changed_recipe


def _samples(pack: PackRecipe, plan: StagePlan) -> float:
    """That a pack holds, about."""
    budgets = (pack.tokens, plan.tokens), (pack.tiles, plan.tiles)
    return max(1.0, min(budget * plan.samples / used for budget, used in budgets if used))


def _checkpointing(recipe: Recipe, plans: Sequence[StagePlan], large: Sequence[int]) -> Iterator[Recipe]:
    yield _changed(recipe, {number: {"checkpointing": BLOCKS} for number in large})


def _moments(recipe: Recipe, plans: Sequence[StagePlan], large: Sequence[int]) -> Iterator[Recipe]:
    exact = [number for number in large if recipe.stages[number].optimizer == "adamw"]
    yield _changed(recipe, {number: {"optimizer": "adamw8bit"} for number in exact})


def _quantized(recipe: Recipe, plans: Sequence[StagePlan], large: Sequence[int]) -> Iterator[Recipe]:
    if recipe.lora and not recipe.lora.quantize:
        yield replace(recipe, lora=replace(recipe.lora, quantize="nf4"))


def _frozen(recipe: Recipe, plans: Sequence[StagePlan], large: Sequence[int]) -> Iterator[Recipe]:
    changed = {}
    for number in large:
        train = recipe.stages[number].train
        if "vision" in train and len(train) > 1:
            given = train if isinstance(train, Mapping) else None
            rest = [part for part in train if part != "vision"]
            changed[number] = {"train": {part: given[part] for part in rest} if given else tuple(rest)}
    yield _changed(recipe, changed)


def _adapters(recipe: Recipe, plans: Sequence[StagePlan], large: Sequence[int]) -> Iterator[Recipe]:
    if recipe.model and recipe.lora is None and not adapters.is_adapter(recipe.model):
        yield replace(recipe, lora=LoraRecipe())


def _tiles(recipe: Recipe, plans: Sequence[StagePlan], large: Sequence[int]) -> Iterator[Recipe]:
    most = max(recipe.stages[number].max_tiles for number in large)
    while most > 1:
        most = -(-most // 2)
        yield _changed(recipe, {n: {"max_tiles": min(recipe.stages[n].max_tiles, most)} for n in large})


NF4 = Change(
    make=_quantized,
    cost="frozen weights are rounded to 4 bits while adapters train; steps take longer",
    parts=(trace.WEIGHTS,),
    low_bit=True,
)
CHANGES = (
    Change(make=_micro_batches, cost="the result stays the same; small micro batches use a GPU less well"),
    Change(make=_packs, cost="a step has about the same samples, in more packs; small ones use a GPU less well"),
    Change(
        make=_checkpointing,
        cost="the result stays the same; blocks that train compute their forward pass twice",
        parts=(trace.ENCODER, trace.DECODER),
    ),
    Change(
        make=_moments,
        cost="AdamW's moments are rounded to 8 bits",
        parts=(trace.OPTIMISER,),
        low_bit=True,
    ),
    NF4,
    Change(make=_frozen, cost="the encoder no longer adapts to images unlike photos and documents"),
    Change(
        make=_adapters,
        cost="adapters instead of the weights: weaker where boxes are learnt; raise lr to about 2e-4",
    ),
    NF4,
    Change(make=_tiles, cost="less detail is seen of large images"),
)
"""In the order in which they are tried."""


def _overrides(before: Recipe, now: Recipe) -> Iterator[str]:
    """What makes the one recipe of the other on a command line."""
    for number, (old, new) in enumerate(zip(before.stages, now.stages, strict=True)):
        for name in ("batch_size", "micro_batch", "max_tiles", "max_length", "optimizer", "checkpointing", "train"):
            if (value := getattr(new, name)) != getattr(old, name):
                yield f"stages.{number}.{name}={_told(value)}"
        for name in ("tokens", "tiles"):
            if (value := getattr(new.pack, name, None)) != getattr(old.pack, name, None):
                yield f"stages.{number}.pack.{name}={value}"
    if now.lora != before.lora and now.lora is not None:
        if before.lora is None:
            yield f"lora.rank={now.lora.rank}"
        if now.lora.quantize:
            yield f"lora.quantize={now.lora.quantize}"


def _told(value: Any) -> str:
    """As YAML in one line, without settings that are left out."""
    if isinstance(value, Mapping):
        given = {part: {k: v for k, v in settings.items() if v is not None} for part, settings in value.items()}
        return json.dumps(given, separators=(",", ":"))
    return f"[{','.join(value)}]" if isinstance(value, tuple) else str(value)


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
    plan = Planner(machine).plan_stage(recipe, recipe.stages.index(stage), batch=batch)
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
