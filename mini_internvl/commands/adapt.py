"""``minivl adapt``: the adaptation with its progress, then the scores before and after and the report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from mini_internvl import report as reports
from mini_internvl import terminal
from mini_internvl.adapt import AdaptConfig, Callbacks, adapt
from mini_internvl.commands import _ratios
from mini_internvl.commands._options import AsJson, Device, Model, echo_json, stoppable

EXAMPLE = "minivl adapt driving-sim --epochs 4 --ratio 1"


def command(
    domain: Annotated[
        str,
        typer.Argument(help="Data of your own (a file or folder), a domain's name, or the path of a domain file."),
    ],
    model: Model = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; runs/DOMAIN when left out.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of raw records; built when left out.")] = None,
    build: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="What is built, for instance train=2000; repeatable."),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(min=32, metavar="PIXELS", help="Cut annotated pictures of larger sides into crops of this side."),
    ] = None,
    max_faults: Annotated[float, typer.Option(help="Share of records that may be unusable.")] = 0.01,
    epochs: Annotated[float | None, typer.Option(help="Passes over the domain's samples.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    ratio: Annotated[float | None, typer.Option(help="General to domain samples, the paper's r.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per optimiser step.")] = None,
    max_tiles: Annotated[int | None, typer.Option(help="Most tiles of a training sample.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest training sample in tokens.")] = None,
    loss_reduction: Annotated[str | None, typer.Option(help="token, square or sample.")] = None,
    lora: Annotated[
        int | None, typer.Option(metavar="RANK", help="Train adapters of this rank instead of the weights.")
    ] = None,
    freeze_vision: Annotated[bool, typer.Option("--freeze-vision", help="Leave the image encoder as it is.")] = False,
    general: Annotated[
        str | None,
        typer.Option(
            help="General training data: meta files, files of rows and DOMAIN=FOLDER, with commas between; synth "
            "(default for nano); or none."
        ),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(help="Benchmarks of general ability, separated by commas, or none; synth for nano by default."),
    ] = None,
    probe_data: Annotated[Path | None, typer.Option(help="Folder of those benchmarks' official files.")] = None,
    probe_items: Annotated[int, typer.Option(min=1, help="Questions of each of them (synth: of each kind).")] = 100,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches.")] = 1,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32 arithmetic of the training.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of data and training.")] = 0,
    sweep: Annotated[
        str | None, typer.Option(metavar="RATIO,RATIO...", help="Adapt at several ratios and compare them.")
    ] = None,
    extend: Annotated[bool, typer.Option("--extend", help="Go on with more epochs or other data.")] = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the HTML report.")] = True,
    json: AsJson = False,
) -> None:
    """Adapt a model to a domain: score it, train, score again, probe what it forgot, write the report.

    Settings that are left out come from the domain, which has some for nano and some for the released models.
    """
    config = _config(dict(locals()))  # every option by its name, which is that of the setting
    if sweep is not None and ratio is not None:
        raise typer.BadParameter("--sweep takes the ratios; leave --ratio out")
    with stoppable() as should_stop:
        if sweep is None:
            run(config, should_stop, report=report, as_json=json)
        else:
            _sweep(config, sweep, should_stop, report=report, as_json=json)


def _config(options: Mapping[str, Any]) -> AdaptConfig:
    """The settings that the command's options mean."""
    build, crop, probe = options["build"], options["crop"], options["probe"]
    given = {
        **options,
        "output": options["output"] or Path("runs") / Path(options["domain"]).resolve().stem,
        "build": dict(_number(text) for text in build or []) | ({"crop": crop} if crop else {}),
        "probe": None if probe is None else probe.split(","),
        "command": shlex.join(["minivl", *sys.argv[1:]]),
    }
    return AdaptConfig(**{field.name: given[field.name] for field in fields(AdaptConfig) if field.name in given})


def _sweep(
    config: AdaptConfig, ratios: str, should_stop: Callable[[], bool], *, report: bool, as_json: bool
) -> None:  # fmt: skip
    def one(settings: AdaptConfig) -> None:
        typer.echo(f"ratio {settings.ratio:g}", err=True)
        run(settings, should_stop, report=report, quiet=True)

    content = _ratios.sweep(config, _ratios.parse_ratios(ratios), one)
    if as_json:
        echo_json(content)
        return
    _ratios.print_sweep(content)
    typer.echo(f"best by {content['rule']}: {content['best']['folder']}")
    typer.echo(f"picture: {content['picture']}")


def _number(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name.isidentifier() or not number.isdigit():
        raise typer.BadParameter(f'"{text}" is not NAME=NUMBER, for instance train=2000')
    return name, int(number)


def run(
    config: AdaptConfig, should_stop: Callable[[], bool], *, report: bool = True, as_json: bool = False,
    quiet: bool = False,
) -> None:  # fmt: skip
    """Adapt, print the scores, name the checkpoint and the report; ``quiet`` prints nothing of the result."""
    if report:
        reports.require()
    bars: dict[str, terminal.ProgressBar] = {}

    def step(title: str) -> None:
        bars["now"] = terminal.ProgressBar(title)

    callbacks = Callbacks(
        note=lambda line: typer.echo(line, err=True),
        step=step,
        count=lambda done, total: bars["now"](done, total),
        train=terminal.TrainingBar(),
        should_stop=should_stop,
    )
    result = adapt(config, callbacks)
    page = reports.build(config.output) if report else None
    if as_json:
        echo_json(result)
    if as_json or quiet:
        return
    print_scores(config.output, result["probe"])
    typer.echo(f"\nadapted model: {config.output / result['checkpoint']}")
    if page:
        typer.echo(f"report: {page}")


def print_scores(folder: Path, probe: Sequence[str]) -> None:
    """Print a table for each benchmark, before, after and without seeing, and what is clear about the difference."""
    parts = reports.read_parts(folder)
    sections = reports.compare(parts.results, parts.base, parts.baselines)
    for section in sections:
        trivial = reports.baseline_names([section])
        rows = [
            (
                line.metric,
                f"{line.other:.2f}",
                f"{line.value:.2f}",
                *(f"{line.baselines[name]:.2f}" if name in line.baselines else "" for name in trivial),
                str(line.items or ""),
                line.result,
            )
            for line in section.lines.values()
        ]
        kind = "general ability" if section.result.benchmark in probe else "domain"
        title = f"{section.result.title} ({kind})"
        terminal.table(title, ("", "base", "adapted", *trivial, "items", ""), rows)
    said = reports.verdict(sections, ("the adapted model", "the base"))
    typer.echo(said[0].upper() + said[1:])
    for warning in reports.unseeing(sections):
        typer.echo(warning)
