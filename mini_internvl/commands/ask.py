"""``minivl ask``: ask about images; the answer is printed as it comes, then tiles, tokens and seconds."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from mini_internvl.commands._options import AsJson, Device, Dtype, Model, echo_json

FIELDS = ("text", "tiles", "prompt_tokens", "tokens", "seconds", "finish_reason")
CUT_OFF = {"length": "--max-new-tokens is reached", "context": "the model has no positions left"}
EXAMPLE = 'minivl ask receipt.jpg "What is the total?"'


def command(
    inputs: Annotated[list[str], typer.Argument(metavar="[IMAGE]... QUESTION", help="Images, then the question.")],
    model: Model = None,
    max_tiles: Annotated[int | None, typer.Option(help="Most tiles of all images together.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    fast_images: Annotated[bool, typer.Option(help="Resize faster, equal within 1/255.")] = False,
    json: AsJson = False,
) -> None:
    """Ask about images; the answer is printed as it comes, then tiles, tokens and seconds."""
    *images, question = inputs
    if not images and os.path.isfile(question):  # of a long question, Path.is_file raises OSError
        raise typer.BadParameter(f'the question is missing; write: minivl ask {question} "What is this?"')
    from mini_internvl import GenerationConfig, load
    from mini_internvl.engine.engine import user

    limits = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    engine = load(model, device=device, dtype=dtype, fast_images=fast_images)
    _, reply = print_stream(engine.stream(user(question, *images), limits, max_tiles=max_tiles), quiet=json)
    if json:
        echo_json({name: getattr(reply, name) for name in FIELDS})
        return
    speed = f"{reply.tiles} tiles, {reply.prompt_tokens} + {reply.tokens} tokens, {reply.seconds:.2f} s"
    if reply.finish_reason != "stop":
        speed += f"; the answer is cut off: {CUT_OFF[reply.finish_reason]}"
    typer.secho(speed, fg="bright_black", err=True)


def print_stream(stream: Any, *, quiet: bool = False) -> tuple[str, Any]:
    """Print pieces as they come; returns their text and the reply."""
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            if not quiet:
                typer.echo()
            return "".join(pieces), end.value
        if not quiet:
            typer.echo(pieces[-1], nl=False)
            sys.stdout.flush()
