"""What an adaptation will do, settled and checked before a model is loaded: settings, recipe, general data, probe."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mini_internvl import plugins
from mini_internvl.adapt.general import DRAWN, FOLDER, NONE, General, settle
from mini_internvl.domains import AdaptRecipe, Domain, load_domain
from mini_internvl.engine.hub import NANO, base_folder, resolve
from mini_internvl.model.checkpoint import read_config
from mini_internvl.recipes import PARTS, LoraRecipe, Recipe, SourceRecipe

RECIPE_FIELDS = ("epochs", "lr", "ratio", "batch_size", "max_tiles", "max_length", "loss_reduction")
"""Settings of an adaptation that replace those of the domain's recipe."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Settings of an adaptation, those of ``minivl adapt``; ``None`` leaves one to the recipe of the domain."""

    domain: str  # name of a domain, path of a domain file, or path of data (a file or folder)
    output: Path
    model: str | None = None  # starting checkpoint; ``None`` for nano
    data: Path | None = None  # folder of raw records; ``None`` lets the domain build its own in the run folder
    build: Mapping[str, int] = field(default_factory=dict)  # numbers for the domain's ``build``
    max_faults: float = 0.01  # share of the records that may be unusable; more stop the run
    epochs: float | None = None
    lr: float | None = None
    ratio: float | None = None  # general to domain samples, the paper's r
    batch_size: int | None = None
    max_tiles: int | None = None
    max_length: int | None = None
    loss_reduction: str | None = None  # how a token weighs: token, square or sample
    lora: int | None = None  # rank of the adapters that train instead of the weights; ``None`` trains the weights
    freeze_vision: bool = False
    general: str | None = None  # see ``general.settle``; by default ``synth`` for nano alone
    probe: Sequence[str] | None = None  # benchmarks of general ability; by default synth for nano alone
    probe_data: Path | None = None  # folder of their official files
    probe_items: int = 100  # questions of each of them (synth: of each kind)
    validation_items: int = 48  # validation questions per benchmark of the metric measured while training
    device: str = "auto"
    precision: str = "auto"  # of the training: ``fp32``, ``bf16``, or ``auto``, bf16 where it is fast
    workers: int = 1  # processes that prepare batches
    seed: int = 0
    answers: Path | None = None  # file of kept answers; ``None`` for one in the run folder
    extend: bool = False  # whether a training begun in ``output`` may go on with more epochs or other data
    command: str = ""  # the command line, for the report


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is settled before the work begins."""

    domain: Domain
    base: Path  # folder of the starting checkpoint
    recipe: AdaptRecipe
    general: General  # general training data
    probe: Mapping[str, ModuleType]  # benchmarks of general ability, by name
    lines: Sequence[str]  # the plan in words


def make_plan(config: AdaptConfig) -> Plan:
    """Settle and check model, settings, general data and probe; ValueError names what is wrong and the fix."""
    domain = load_domain(config.domain)
    if config.data is None and domain.build is None:
        raise ValueError(f"the domain {domain.name} cannot make its own records; give their folder with --data")
    if config.data is not None and not config.data.is_dir():
        raise ValueError(f"{config.data} is no folder; --data takes the folder of the raw records")
    if domain.about is not None and config.data is not None:
        raise ValueError(f"{config.domain} is the data already; leave --data out")
    _check_build(config, domain)
    base = resolve(config.model)
    nano = read_config(base_folder(base)) == read_config(NANO)
    recipe = domain.nano_recipe if nano else domain.recipe
    given = {name: getattr(config, name) for name in RECIPE_FIELDS if getattr(config, name) is not None}
    if config.lora is not None and "lr" in given:
        given["lora_lr"] = given["lr"]
    recipe = replace(recipe, **given)
    general = config.general or (DRAWN if nano else NONE)
    if general == NONE and recipe.ratio:
        if config.ratio:
            raise ValueError(f"ratio {config.ratio:g} mixes general data in; say which with --general")
        recipe = replace(recipe, ratio=0.0)
    mixed = settle(general, recipe.ratio, config.seed, config.output / FOLDER)
    names = list(config.probe) if config.probe is not None else [DRAWN] if nano else []
    probe = {plugins.short_name(name): plugins.find("benchmarks", name) for name in names if name != NONE}
    for name in probe:
        if config.probe_data is None and name != DRAWN:
            raise ValueError(f"the probe {name} reads its questions from a folder; give it with --probe-data")
    for name in probe:
        if name in domain.benchmarks:
            raise ValueError(f"{name} scores the domain already; it cannot be the probe of general ability too")
    trained = "adapters of rank " + str(config.lora) if config.lora else "all weights"
    lines = [
        f"{config.model or 'nano'}, adapted to {domain.title}: {trained}{', encoder frozen' * config.freeze_vision}",
        f"epochs {recipe.epochs:g}, lr {recipe.lora_lr if config.lora else recipe.lr:g}, batches of "
        f"{recipe.batch_size}, at most {recipe.max_tiles} tiles and {recipe.max_length:,} tokens, loss by "
        f"{recipe.loss_reduction}" + (" (settings for nano)" if nano else ""),
        mixed.line,
        f"general ability is probed with {', '.join(probe)}"
        if probe
        else "general ability is not probed; name benchmarks with --probe to see what is forgotten",
    ]
    return Plan(domain=domain, base=base, recipe=recipe, general=mixed, probe=probe, lines=lines)


def _check_build(config: AdaptConfig, domain: Domain) -> None:
    """Refuse what the domain's ``build`` does not take."""
    if domain.build is None or config.data is not None:
        return
    known = build_settings(domain)
    if unknown := sorted(set(config.build) - known.keys()):
        raise ValueError(f"{domain.name} builds nothing by {', '.join(unknown)}; it takes {', '.join(sorted(known))}")


def build_settings(domain: Domain) -> dict[str, Any]:
    """What the domain's ``build`` takes beside folder, seed and progress, with what it is when left out."""
    assert domain.build is not None
    given = inspect.signature(domain.build).parameters
    return {name: one.default for name, one in given.items() if name not in ("folder", "seed", "progress")}


def make_recipe(config: AdaptConfig, plan: Plan, kept: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The training recipe: one stage on the domain's rows, with general samples mixed in."""
    rows = {split: str(config.output / "rows" / f"{split}.jsonl") for split, found in kept.items() if found["rows"]}
    first, *rest = kept
    lora = config.lora is not None
    frozen = {"vision": config.freeze_vision, "projector": lora}
    parts = tuple(part for part in PARTS if not frozen.get(part))
    data = (SourceRecipe(kind="rows", path=rows[first]), *plan.general.sources)
    stage = plan.recipe.stage(data, rows=kept[first]["rows"], train=parts, lora=lora)
    return Recipe(
        name=f"adapt-{plan.domain.name}",
        model=str(plan.base),
        stages=(stage,),
        precision=config.precision,
        device=config.device,
        seed=config.seed,
        held_out=tuple(SourceRecipe(kind="rows", path=rows[split]) for split in rest if split in rows),
        held_out_samples=32,
        eval_every=-(-stage.steps // 4),  # the last measurement is of the last step
        save_every=max(1, stage.steps // 8),
        lora=None if config.lora is None else LoraRecipe(rank=config.lora, parts=parts),
    )


def used_settings(config: AdaptConfig, plan: Plan, recipe: Recipe) -> dict[str, Any]:
    """The settings that were used, flat, for the report."""
    return {
        **asdict(plan.recipe),
        "steps": recipe.stages[0].steps,
        "trains": list(recipe.stages[0].train),
        "lora": config.lora or 0,
        "general": list(plan.general.parts),
        "device": config.device,
        "precision": config.precision,
        "seed": config.seed,
    }
