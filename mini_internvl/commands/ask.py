"""``minivl ask``: ask about images and videos; the answer is printed as it comes, then tiles, tokens and seconds."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from mini_internvl.commands._options import (
    AsJson,
    Backend,
    Device,
    Dtype,
    Flash,
    Model,
    VisualTokens,
    echo_json,
    load_engine,
)
from mini_internvl.commands._sampling import (
    Beams,
    Choice,
    JsonSchema,
    LengthPenalty,
    MinP,
    Regex,
    RepetitionPenalty,
    Seed,
    Stop,
    TopK,
    TopP,
    sampling,
)

FIELDS = ("tiles", "prompt_tokens", "tokens", "seconds", "saved", "finish_reason")
LONGEST = 256  # tokens of an answer
CUT_OFF = {"length": "--max-new-tokens is reached", "context": "the model has no positions left"}
EXAMPLE = 'minivl ask receipt.jpg "What is the total?"'


def command(
    inputs: Annotated[
        list[str], typer.Argument(metavar="[IMAGE|VIDEO]... QUESTION", help="Images or videos, then the question.")
    ],
    model: Model = None,
    max_tiles: Annotated[
        int | None, typer.Option(help="Most tiles of all images together; a frame of a video has one.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames of a video for each second; 1.", show_default=False)] = None,
    max_frames: Annotated[int | None, typer.Option(help="Most frames of a video; 40.", show_default=False)] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="FROM-TO", help="Seconds of a video that are shown, such as 3-7.5.")
    ] = None,
    visual_tokens: VisualTokens = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer in tokens; 256, or 4352 with --think.", show_default=False)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the most likely token; 0, or 0.6 with --think.", show_default=False)
    ] = None,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    beams: Beams = 1,
    length_penalty: LengthPenalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    choice: Choice = None,
    regex: Regex = None,
    json_schema: JsonSchema = None,
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    think: Annotated[
        bool, typer.Option("--think", help="Ask to think aloud before the answer (3.5); the thought goes to stderr.")
    ] = False,
    flash: Flash = None,
    fast_images: Annotated[bool, typer.Option(help="Resize faster, equal within 1/255.")] = False,
    json: AsJson = False,
) -> None:
    """Ask about images and videos; the answer is printed as it comes, then frames, tiles, tokens and seconds."""
    *images, question = inputs
    if not images and os.path.isfile(question):  # of a long question, Path.is_file raises OSError
        raise typer.BadParameter(f'the question is missing; write: minivl ask {question} "What is this?"')
    from mini_internvl.inputs import thinking
    from mini_internvl.inputs.messages import image_parts, normalise

    if think and beams > 1:
        raise typer.BadParameter("--think draws its answer, which --beams does not; leave one of them out")
    limits = sampling(
        max_new_tokens=LONGEST + thinking.TOKENS * think if max_new_tokens is None else max_new_tokens,
        temperature=thinking.TEMPERATURE * think if temperature is None else temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        beams=beams,
        length_penalty=length_penalty,
        seed=seed,
        stop=stop,
        choice=choice,
        regex=regex,
        json_schema=json_schema,
    )
    if (fps or max_frames or clip) and not any(map(_is_video, images)):
        raise typer.BadParameter("--fps, --max-frames and --clip are of a video, and none is given")
    shown = [_part(path, {"fps": fps, "max_frames": max_frames, **_seconds(clip)}) for path in images]
    asked: Any = normalise([{"role": "user", "content": [*shown, {"type": "text", "text": question}]}])
    frames = sum(part.is_frame for part in image_parts(asked))
    settings = {"device": device, "dtype": dtype, "fast_images": fast_images, "visual_tokens": visual_tokens}
    engine = load_engine(model, backend, flash=flash, **settings)
    stream = engine.stream(thinking.thinking(asked) if think else asked, limits, max_tiles=max_tiles)
    _, reply = print_stream(stream, quiet=json, think=think)
    if json:
        thought, text = thinking.split_thought(reply.text)
        facts = {name: getattr(reply, name) for name in FIELDS}
        counted = {"frames": frames} if frames else {}
        echo_json({"text": text, **({"thought": thought} if thought else {}), **counted, **facts})
        return
    typer.secho(_summary(reply, frames), fg="bright_black", err=True)


def _summary(reply: Any, frames: int) -> str:
    """Frames, tiles, tokens and seconds of a reply, and why it ended early."""
    speed = f"{frames} frames, " if frames else ""
    speed += f"{reply.tiles} tiles, {reply.prompt_tokens} + {reply.tokens} tokens, {reply.seconds:.2f} s"
    if reply.saved:
        speed += (
            f"; {reply.saved} visual tokens saved ({100 * reply.saved / (reply.prompt_tokens + reply.saved):.0f} %)"
        )
    if reply.finish_reason != "stop":
        speed += f"; the answer is cut off: {CUT_OFF[reply.finish_reason]}"
    return speed


def _part(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """An image or a video as part of a message."""
    if _is_video(path):
        return {"type": "video", "video": path, **settings}
    return {"type": "image", "image": path}


def _is_video(path: str) -> bool:
    from mini_internvl.inputs import video

    return path.lower().endswith(video.ENDINGS)


def _seconds(clip: str | None) -> dict[str, float]:
    """``from`` and ``to`` of an option FROM-TO, of which either may be left out."""
    if clip is None:
        return {}
    begin, dash, end = clip.partition("-")
    try:
        if not dash or not (begin or end):
            raise ValueError
        return {key: float(text) for key, text in (("from", begin), ("to", end)) if text}
    except ValueError:
        raise typer.BadParameter(f'"{clip}" is no range of seconds; write --clip 3-7.5, 3- or -7.5') from None


def print_stream(stream: Any, *, quiet: bool = False, think: bool = False) -> tuple[str, Any]:
    """Print pieces as they come; returns their text and the reply.

    With ``think`` the thought before an answer is dimmed and goes to stderr, so that stdout holds the answer alone.
    """
    from mini_internvl.inputs.thinking import ThoughtStream

    pieces: list[str] = []
    parts, was_thought = ThoughtStream(), False
    while True:
        try:
            piece, reply, last = next(stream), None, False
        except StopIteration as end:
            piece, reply, last = "", end.value, True
        pieces.append(piece)
        shown = parts.push(piece, last=last) if think else [(False, piece)]
        for thought, text in [] if quiet else shown:
            if was_thought and not thought:
                typer.echo("\n", err=True)
            was_thought = thought
            typer.secho(text, nl=False, err=thought, dim=thought or None)
            sys.stdout.flush()
        if last:
            if not quiet:
                typer.echo(err=was_thought)
            return "".join(pieces), reply
