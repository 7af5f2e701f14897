"""``minivl plan``: what a recipe needs, before it runs."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mini_internvl.commands._options import AsJson, echo_json

if TYPE_CHECKING:
    from mini_internvl.train.machines import Machine
    from mini_internvl.train.plan import StagePlan
    from mini_internvl.train.remedies import Remedy

GB = 1e9
MOST_COLUMNS = 5  # stages that stand beside each other; more are listed
EXAMPLE = "minivl plan recipes/finetune.yaml --device 4090 --memory 24GB"


def command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b=value]...", help="Changes to the recipe.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory that it must fit into, for instance 24GB.")] = "",
    device: Annotated[
        str,
        typer.Option(help="The recipe's device when left out; or a GPU to plan for: H100, A100, 4090, T4, ..."),
    ] = "",
    gpus: Annotated[int, typer.Option(min=1, help="Processes that share a step, one on each GPU.")] = 1,
    json: AsJson = False,
) -> None:
    """Predict memory, tokens and time of a recipe without running it; with --memory, find settings that fit.

    Exit code 1: it does not fit.
    """
    from mini_internvl import recipes, terminal
    from mini_internvl.train.machines import find_machine
    from mini_internvl.train.plan import Planner
    from mini_internvl.train.remedies import find_remedies

    limit = parse_memory(memory) if memory else None
    settings = recipes.load(recipe, overrides or [])
    machine = find_machine(device or settings.device)
    planner = Planner(machine, gpus)
    plans = planner.plan(settings)
    needed = max(plan.total for plan in plans)
    fits = limit is None or needed <= limit
    remedies: list[Remedy] = []
    if not json:
        _print(machine, gpus, plans)
    if limit is not None and not fits:
        with terminal.err.status("looking for settings that fit"):
            remedies = find_remedies(planner, settings, limit)
    if json:
        echo_json(as_json(machine, gpus, plans, remedies, fits))
    elif limit is not None:
        _print_fit(plans, limit, remedies, ["minivl", "train", str(recipe), *(overrides or [])])
    if not fits:
        raise typer.Exit(1)


def parse_memory(text: str) -> float:
    """Bytes of "24GB", "24 GiB" or "900MB"; a usage error where it is no such amount."""
    units = {"mb": 1e6, "gb": 1e9, "mib": 2.0**20, "gib": 2.0**30, "tb": 1e12}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    if not found or found[2] not in units or float(found[1]) <= 0:
        raise typer.BadParameter(f'"{text}" is no amount of memory; write for instance 24GB', param_hint="--memory")
    return float(found[1]) * units[found[2]]


def as_json(machine: Machine, gpus: int, plans: list[StagePlan], remedies: list[Remedy], fits: bool) -> dict[str, Any]:
    """All that the tables show, in bytes and seconds."""
    return {
        "machine": dataclasses.asdict(machine),
        "gpus": gpus,
        "fits": fits,
        "stages": [{**dataclasses.asdict(plan), "total": plan.total} for plan in plans],
        "changes": [{"overrides": r.overrides, "total": r.total, "cost": r.cost} for r in remedies],
    }


def _print(machine: Machine, gpus: int, plans: list[StagePlan]) -> None:
    each = f"{gpus} x {machine.name}, memory on each" if gpus > 1 else machine.name
    typer.echo(f"a prediction for {each}: {machine.note}")
    (_print_by_stage if len(plans) > MOST_COLUMNS else _print_by_part)(plans)
    for told, stages in _grouped((plan.sizes, plan.stage) for plan in plans):
        typer.echo(f"{stages}: sizes {told}")
    for reason, stages in _grouped((reason, plan.stage) for plan in plans for reason in plan.missing):
        typer.echo(f"{stages}: without {reason}")


def _print_by_part(plans: list[StagePlan]) -> None:
    """Every part of the memory, a column for each stage."""
    from mini_internvl import terminal

    names = [name for name in plans[0].memory if any(plan.memory[name] >= 5e6 for plan in plans)]
    rows = [[name, *(f"{plan.memory[name] / GB:.2f}" for plan in plans)] for name in names]
    rows += [["total", *(f"{plan.total / GB:.2f}" for plan in plans)], ["highest in the", *(p.moment for p in plans)]]
    rows += [
        ["largest micro batch", *(plan.batch for plan in plans)],
        ["steps", *(f"{plan.steps:,}" for plan in plans)],
    ]
    for name in ("samples", "tokens", "supervised", "tiles"):
        rows.append([name, *(f"{getattr(plan, name):,.0f}" for plan in plans)])
    if any(plan.kept for plan in plans):
        rows.append(["features on disk, GB", *(f"{plan.kept / GB:.2f}" for plan in plans)])
    rows.append(["TFLOP", *(f"{plan.flops.useful / 1e12:,.0f}" for plan in plans)])
    rows.append(["time", *(terminal.duration(plan.seconds) for plan in plans)])
    terminal.table("memory in GB, then work, by stage", ["", *(plan.stage for plan in plans)], rows)


def _print_by_stage(plans: list[StagePlan]) -> None:
    """A line for each stage: --json tells the parts."""
    from mini_internvl import terminal

    rows = [
        [
            plan.stage,
            f"{plan.total / GB:.2f}",
            max(plan.memory, key=lambda name: plan.memory[name]),
            f"{plan.steps:,}",
            f"{plan.samples:,.0f}",
            f"{plan.tokens:,.0f}",
            f"{plan.tiles:,.0f}",
            terminal.duration(plan.seconds),
        ]
        for plan in plans
    ]
    seconds = sum(plan.seconds for plan in plans)
    largest = max(plan.total for plan in plans)
    rows.append(["all", f"{largest / GB:.2f}", *[""] * 5, terminal.duration(seconds)])
    headers = ["", "GB", "most of it", "steps", "samples", "tokens", "tiles", "time"]
    terminal.table("memory and work of each stage", headers, rows)


def _grouped(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Each text with the stages of which it is true."""
    stages: dict[str, list[str]] = {}
    for text, stage in pairs:
        stages.setdefault(text, []).append(stage)
    yield from ((text, ", ".join(names)) for text, names in stages.items())


def _print_fit(plans: list[StagePlan], limit: float, remedies: list[Remedy], command: list[str]) -> None:
    """Whether it fits; if not, what needs most, the changes one after the other, and the command that fits."""
    from mini_internvl import terminal
    from mini_internvl.train.nf4 import installed

    largest = max(plans, key=lambda plan: plan.total)
    if largest.total <= limit:
        typer.echo(f"{largest.total / GB:.2f} GB fits into {limit / GB:.2f} GB")
        return
    typer.echo(
        f"DOES NOT FIT: {largest.stage} needs {largest.total / GB:.2f} GB of {limit / GB:.2f}, {_most(largest)}\n"
    )
    typer.echo(f"{'GB':>9}  {'time':>12}  change, on top of those above it")
    for total, rows, added, cost in [
        (largest.total, plans, "the recipe as it is", ""),
        *((r.total, r.plans, shlex.join(r.added) or "sizes as in the recipe", r.cost) for r in remedies),
    ]:
        time = terminal.duration(sum(plan.seconds for plan in rows))
        typer.echo(f"{total / GB:9.2f}  {time:>12}  {added}{'   <- fits' if total <= limit else ''}")
        if cost:
            typer.echo(f"{'':25}{cost}")
    if remedies and remedies[-1].total <= limit:
        typer.echo(f"\nFITS with {remedies[-1].total / GB:.2f} GB:")
        typer.echo(f"  {shlex.join([*command, *remedies[-1].overrides])}")
        return
    last = max(remedies[-1].plans if remedies else plans, key=lambda plan: plan.total)
    typer.echo(f"\nNOTHING FITS; the least is {last.total / GB:.2f} GB, {_most(last)}")
    typer.echo("take a smaller model, more memory, or several GPUs with parallel=fsdp (--gpus)")
    if not installed():
        typer.echo('moments and frozen weights in fewer bits were not tried: pip install "mini-internvl[lowbit]"')


def _most(plan: StagePlan) -> str:
    """The parts that take most of its memory."""
    parts = sorted(plan.memory.items(), key=lambda part: -part[1])[:3]
    return "most of it for " + ", ".join(f"{name} ({size / GB:.2f})" for name, size in parts)
