"""``minivl adapt``: the pipeline with its progress, then the table and the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mini_internvl import report, terminal
from mini_internvl.adapt import AdaptConfig, Listener, adapt
from mini_internvl.commands._options import AsJson, Model
from mini_internvl.commands._stop import stoppable

EXAMPLE = "minivl adapt driving-sim --epochs 4 --ratio 1"


def command(
    domain: Annotated[str, typer.Argument(help="Name of a domain, for instance driving-sim.")],
    model: Model = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; runs/DOMAIN when left out.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of raw records; built when left out.")] = None,
    train_clips: Annotated[int | None, typer.Option(help="Training clips to build.")] = None,
    test_clips: Annotated[int | None, typer.Option(help="Test clips to build.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the domain's samples.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    ratio: Annotated[float | None, typer.Option(help="General to domain samples, the paper's r.")] = None,
    general_items: Annotated[int, typer.Option(help="Questions per kind of the general probe.")] = 100,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32 arithmetic.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of data and training.")] = 0,
    json: AsJson = False,
) -> None:
    """Adapt a model to a domain: score it, train, score again, probe what it forgot, write the report."""
    from mini_internvl.adapt import AdaptConfig

    clips = {split: n for split, n in (("train", train_clips), ("test", test_clips)) if n is not None}
    config = AdaptConfig(
        domain=domain,
        model=model,
        output=output or Path("runs") / domain,
        data=data,
        clips=clips,
        epochs=epochs,
        lr=lr,
        ratio=ratio,
        general_items=general_items,
        precision=precision,
        seed=seed,
        command=" ".join(["minivl", *sys.argv[1:]]),
    )
    with stoppable() as should_stop:
        run(config, should_stop, as_json=json)


TITLES = {"data": "building clips", "adapt": "adapting"}


def run(config: AdaptConfig, should_stop: Callable[[], bool], *, as_json: bool = False) -> dict[str, Any]:
    """Adapt, print the table, name the report. Returns the content of adapt.json."""
    state: dict[str, Any] = {}

    def step(title: str) -> None:
        state["counter"] = terminal.ProgressBar(TITLES.get(title, title))

    listener = Listener(
        step=step,
        count=lambda done, total: state["counter"](done, total),
        train=terminal.TrainingBar(),
        should_stop=should_stop,
    )
    result = adapt(config, listener)
    path = report.build(config.output)
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False, indent=1))
        return result
    print_tables(config.output, result["title"])
    typer.echo(f"\nchanged weights: {config.output / 'train' / 'best'}\nreport: {path}")
    return result


def print_tables(run: Path, title: str) -> None:
    """Base against adapted, each metric with what is clear about its change."""
    sections = report.compare(report.read_evaluation(run / "adapted"), report.read_evaluation(run / "base"))
    for section in sections:
        rows = [
            (line.metric, f"{line.other:.2f}", f"{line.value:.2f}", str(line.items), line.result)
            for line in section.lines.values()
        ]
        terminal.table(f"{title}: {section.result.title}", ("", "base", "adapted", "items", ""), rows)
    typer.echo(report.verdict(sections, ("The adapted model", "the base")))
