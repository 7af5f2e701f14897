"""``minivl eval``: score a model on benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mini_internvl.commands import _options as options

EXAMPLE = "minivl eval chartqa docvqa --data data --model OpenGVLab/InternVL2-1B"


def command(
    benchmarks: Annotated[list[str], typer.Argument(help="Names of benchmarks, for instance chartqa docvqa.")],
    model: options.Evaluated = None,
    data: options.Data = None,
    split: options.Split = None,
    protocol: options.ProtocolName = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Size of a random sample (synth: images per kind).")] = None,
    seed: options.Seed = None,
    kinds: options.Kinds = "shapes,words,charts",
    output: Annotated[Path | None, typer.Option(help="Folder of the results; runs/eval/MODEL when left out.")] = None,
    judge: options.JudgeModel = "",
    name: Annotated[str, typer.Option(help="Name of the model in results; from --model when left out.")] = "",
    max_tiles: Annotated[
        int | None, typer.Option(min=1, help="Most tiles of a question's images, instead of the benchmark's own.")
    ] = None,
    visual_tokens: options.VisualTokens = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most questions answered together.")] = 64,
    heads: Annotated[
        bool, typer.Option("--heads/--no-heads", help="Take numbers and classes from the model's heads, or as text.")
    ] = True,
    blind: Annotated[
        bool, typer.Option("--blind", help="Ask with grey in place of each image: what is answered without seeing.")
    ] = False,
    think: Annotated[
        bool, typer.Option("--think", help="Ask to think aloud first (3.5); the thought is kept, and is not scored.")
    ] = False,
    flash: options.Flash = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the HTML report.")] = True,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.AsJson = False,
) -> None:
    """Score a model on benchmarks. Every answer is kept: the same command resumes a stopped run."""
    given = {name: value for name, value in locals().items() if name != "json"}  # each is a setting of that name
    from mini_internvl.commands._evaluation import Settings, run

    with options.stoppable() as should_stop:
        code = run(Settings(**given), should_stop, as_json=json)
    raise typer.Exit(code)
