"""``minivl chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from mini_internvl.commands._options import Backend, Device, Dtype, Flash, Model, load_engine
from mini_internvl.commands._sampling import RepetitionPenalty, Seed, TopP
from mini_internvl.commands.ask import print_stream
from mini_internvl.engine import GenerationConfig
from mini_internvl.engine.engine import Engine, user
from mini_internvl.inputs.images import load_image
from mini_internvl.records import Message

EXAMPLE = "minivl chat --model OpenGVLab/InternVL2-1B"


def command(
    model: Model = None,
    image: Annotated[list[str] | None, typer.Option("--image", "-p", help="Image of the first question.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    flash: Flash = None,
) -> None:
    """Talk about images. ``/image PATH`` adds one to the next question, ``/new`` starts again, ``/quit`` ends."""
    limits = GenerationConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    engine = load_engine(model, backend, flash=flash, device=device, dtype=dtype)
    talk(engine, image or [], limits)


def talk(engine: Engine, images: Sequence[str], limits: GenerationConfig | None = None) -> None:
    """Ask line by line until /quit or the end of input; a bad image, or a question that cannot be answered, is reported
    and left out.

    What the engine keeps of a turn is not read again in the next.
    """
    messages: list[Message] = []
    waiting = [path for path in images if _readable(path)]
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/new":
            messages, waiting = [], []
        elif line.startswith("/image"):
            path = line.removeprefix("/image").strip()
            waiting += [path] if _readable(path) else []
        elif line.startswith("/"):
            typer.echo("commands: /image PATH, /new, /quit", err=True)
        elif line:
            asked = [*messages, *user(line, *waiting)]
            try:
                answer = print_stream(engine.stream(asked, limits))[0]
            except ValueError as error:  # too long, most likely
                typer.echo(f"minivl: {error}; /new starts again", err=True)
                continue
            messages, waiting = [*asked, {"role": "assistant", "content": answer}], []


def _readable(path: str) -> bool:
    try:
        load_image(path)
    except (ValueError, OSError) as error:
        typer.echo(f"minivl: {error}", err=True)
        return False
    return True
