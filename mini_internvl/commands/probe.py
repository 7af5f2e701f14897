"""``minivl probe``: what an encoder's features tell of labelled pictures, without a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mini_internvl.commands import _options as options

if TYPE_CHECKING:
    from mini_internvl.evaluate.probing import Probed

EXAMPLE = "minivl probe nano runs/distill/student --data digits --data data/EuroSAT --teacher InternViT-300M-448px"


def command(
    models: Annotated[
        list[str], typer.Argument(help="Encoders: nano, InternViT folders, whole models or their hub ids.")
    ],
    data: Annotated[
        list[str],
        typer.Option(help="Drawn kind (digits, clothes, shapes), class folders, or a file of images with labels."),
    ],
    teacher: Annotated[str | None, typer.Option(help="Encoder that the others are compared with, too.")] = None,
    pool: Annotated[str, typer.Option(help="Features of a picture: mean (of patches), cls or both.")] = "mean",
    layer: Annotated[int, typer.Option(help="Hidden state; -1 is the last, 0 the embedding's.")] = -1,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the one tile in pixels; the encoder's own when left out.")
    ] = None,
    train: Annotated[int, typer.Option(min=2, help="Most pictures of a source to fit on.")] = 2000,
    test: Annotated[int, typer.Option(min=2, help="Most pictures of a source to ask about.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the choice of pictures, their views and what is held out.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder of the results; runs/probe/MODEL when left out.")] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the HTML report.")] = True,
    device: options.Device = "auto",
    dtype: options.FloatDtype = "auto",
    json: options.AsJson = False,
) -> None:
    """Probe encoders: nearest neighbours, a linear probe, retrieval, effective rank, agreement with a teacher."""
    from mini_internvl import terminal
    from mini_internvl.evaluate.probing import ProbeSettings, open_encoder, probe, read_task

    settings = ProbeSettings(layer=layer, pool=pool, image_size=image_size, seed=seed)
    tasks = [read_task(source, train=train, test=test, seed=seed) for source in data]
    named = [*models, *([teacher] if teacher and teacher not in models else [])]
    names = names_of(named)
    encoders = {
        model: open_encoder(model, name=name, device=device, dtype=dtype)
        for model, name in zip(named, names, strict=True)
    }
    folder = output or Path("runs") / "probe" / names[0]
    bars: dict[str, terminal.ProgressBar] = {}

    def show(title: str, done: int, total: int) -> None:
        if done == 0:
            bars[title] = terminal.ProgressBar(title, unit="pictures")
        bars[title](done, total)

    with options.stoppable() as should_stop:
        probed = probe(
            [encoders[model] for model in models],
            tasks,
            teacher=encoders[teacher] if teacher else None,
            settings=settings,
            folder=folder,
            progress=show,
            should_stop=should_stop,
        )
    page = write_report(folder) if report else ""
    if json:
        options.echo_json({"output": str(folder), "report": page, **probed.as_json()})
        return
    print_tables(probed)
    typer.echo(f"results: {folder}")
    if page:
        typer.echo(f"report: {page}")


def write_report(folder: Path) -> str:
    """Where the page is; empty where it could not be written, which is told."""
    from mini_internvl import report as reports

    try:
        return str(reports.build(folder))
    except (ValueError, OSError) as error:
        typer.echo(f"minivl: no report: {error}", err=True)
        return ""


def names_of(models: list[str]) -> list[str]:
    """What tables call models: the last part of each path, or the whole where these are the same."""
    short = [Path(model).name for model in models]
    return [name if short.count(name) == 1 else model.rstrip("/") for model, name in zip(models, short, strict=True)]


def print_tables(probed: Probed) -> None:
    """A table for each task, the differences of the first model from the others, and the agreement with the teacher."""
    from mini_internvl import terminal
    from mini_internvl.evaluate.probing.run import TITLES
    from mini_internvl.report.paired import share

    names = [one.name for one in probed.encoders]
    for task in probed.tasks:
        results = [probed.result(task.name, name) for name in names]
        rows = []
        for key, title in TITLES.items():
            measures = [result.measures[key] for result in results]
            row = [title, str(len(measures[0].marks)), *(f"{one.value:.1f} ± {one.error:.1f}" for one in measures)]
            for other in measures[1:]:
                mine, theirs = ({str(at): mark for at, mark in enumerate(one.marks)} for one in (measures[0], other))
                found = share(mine, theirs)
                row.append(f"{found.value:+.1f} ± {found.error:.1f}{' *' if found.clear else ''}")
            rows.append(row)
        ranks = [f"{one.rank:.1f} of {one.width}" for one in results]
        rows.append(["effective rank", str(len(task.test)), *ranks, *[""] * (len(names) - 1)])
        title = f"{task.name}: {len(task.classes)} classes, {len(task.train):,} training and {len(task.test):,} test "
        title += f"pictures, the most frequent class {task.chance:.1f} %"
        headers = ["", "pictures", *names, *(f"{names[0]} - {name}" for name in names[1:])]
        terminal.table(title, headers, rows)
    for one in probed.agreements:
        rows = [
            [
                str(state),
                f"{value:.3f}",
                f"{one.plain[state]:.3f}" if one.plain else "-",
                f"{one.cka[state, state - len(one.cka)]:.3f}",
            ]
            for state, value in one.mapped.items()
        ]
        title = f"{one.task}: {one.model} beside {one.teacher}, states paired from the last on, {one.pictures} pictures"
        terminal.table(title, ["state", "mapped cosine", "cosine", "CKA"], rows)
    if len(names) > 1:
        typer.echo("* clear at the 5 % level: McNemar's test on the same pictures")
