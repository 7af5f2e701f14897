"""Options that several commands share, how they load an engine, print JSON and facts, and how their work is stopped."""

from __future__ import annotations

import json as json_format
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mini_internvl.engine import Engine

Model = Annotated[
    str | None,
    typer.Option(help="Checkpoint folder or hub id; the nano model that ships with the package when left out."),
]
Evaluated = Annotated[
    str | None,
    typer.Option(help="Checkpoint folder, hub id, or openai:http://host:port/v1#name; nano when left out."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Backend = Annotated[
    str,
    typer.Option(
        help="torch or openvino; auto takes the form of minivl quantize in the model's folder if it is faster."
    ),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, or int8: the decoder's weights.")]
FloatDtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Flash = Annotated[
    str | None,
    typer.Option(
        metavar="off|RELATIVE,ABSOLUTE",
        help="Flash models: which tiles get few tokens. 0.5,0.4: the half of a conversation's tiles that loses least, "
        "where the router is at least 0.4 sure; off: none. As in config.json when left out.",
        show_default=False,
    ),
]
VisualTokens = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE|NUMBER",
        help="Visual tokens that an image keeps: a share such as 0.5, or tokens a tile such as 64; all when left out.",
        show_default=False,
    ),
]
Data = Annotated[Path | None, typer.Option(help="Folder of the benchmarks' official files.")]
Split = Annotated[str | None, typer.Option(help="Split; the benchmark's first when left out.")]
ProtocolName = Annotated[str | None, typer.Option("--protocol", help="Protocol; the paper's when left out.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sample, 0 when left out (synth: of the images).")]
Kinds = Annotated[str, typer.Option(help="synth: kinds of images, separated by commas, or all.")]
JudgeModel = Annotated[str, typer.Option("--judge", help="Judge model: openai:http://host:port/v1#name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load_engine(model: str | None, backend: str, *, flash: str | None = None, **settings: Any) -> Engine:
    """The engine of :func:`mini_internvl.load`; what a person should know of its loading goes to stderr."""
    from mini_internvl import load
    from mini_internvl.model.flash import read_thresholds

    engine = load(model, backend, **settings)
    if engine.note:
        typer.secho(engine.note, fg="bright_black", err=True)
    if flash is not None:
        engine.flash = read_thresholds(flash, engine.config)
    return engine


def echo_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(json_format.dumps(value, ensure_ascii=False, indent=1))


def echo_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print names and values in two columns, or as JSON."""
    if as_json:
        echo_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name:22} {value:,}" if isinstance(value, int) else f"{name:22} {value}")


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Give work a function that tells whether Ctrl-C or SIGTERM asked it to stop; the second one stops at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        typer.echo("\nstopping after this step (once more stops at once)", err=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
