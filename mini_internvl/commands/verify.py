"""``minivl verify``: whether two checkpoints are the same model, on prompts with and without images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mini_internvl import terminal
from mini_internvl.commands._options import AsJson, Device, Dtype
from mini_internvl.data.rows import read_samples
from mini_internvl.engine import load
from mini_internvl.engine.compare import Comparison, PromptComparison, compare
from mini_internvl.records import Message

EXAMPLE = "minivl verify OpenGVLab/InternVL2-1B checkpoints/1B-native"


def command(
    first: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    second: Annotated[str, typer.Argument(help="The one to compare with it.")],
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts as jsonl of messages; built-in ones when left out.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest greedy answer in tokens.")] = 24,
    tolerance: Annotated[
        float | None, typer.Option(help="Allowed difference of logits; by the types when left out: 0.001 or 0.25.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: AsJson = False,
) -> None:
    """Compare two checkpoints: token ids, logits and greedy answers. Exit code 1 when they differ."""

    code = run(
        first,
        second,
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        tolerance=tolerance,
        dtype=dtype,
        device=device,
        as_json=json,
    )
    raise typer.Exit(code)


def run(
    first: str,
    second: str,
    *,
    prompts: Path | None = None,
    max_new_tokens: int = 24,
    tolerance: float | None = None,
    dtype: str = "auto",
    device: str = "auto",
    as_json: bool = False,
) -> int:
    """Load both, compare, print.

    Args:
        first: folder or hub id.
        second: folder or hub id.
        prompts: jsonl of OpenAI messages (or InternVL's conversations); ``None`` for the built-in ones.
        max_new_tokens: longest greedy answer.
        tolerance: allowed difference of logits; ``None`` chooses by the types.
        dtype: of both models.
        device: of both models.
        as_json: print JSON and nothing else.

    Returns:
        The exit code: 0 when everything agrees, else 1.

    Raises:
        ValueError: a checkpoint or the file of prompts cannot be read.
    """
    chosen = None if prompts is None else read_prompts(prompts)
    engines = [load(path, dtype=dtype, device=device) for path in (first, second)]
    result = compare(
        engines[0],
        engines[1],
        chosen,
        max_new_tokens=max_new_tokens,
        tolerance=tolerance,
        progress=lambda done: terminal.err.print(f"  {_told(done)}", markup=False, soft_wrap=True),
    )
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(result), "equal": result.equal}, ensure_ascii=False, indent=1))
    else:
        _print(first, second, result)
    return 0 if result.equal else 1


def read_prompts(path: Path) -> dict[str, Sequence[Message]]:
    """Prompts of a jsonl file by their ids; an answer at the end is left out.

    Raises:
        ValueError: the file is missing or empty, or a row is wrong (named by its line).
    """
    prompts: dict[str, Sequence[Message]] = {}
    for sample in read_samples(path):
        messages = list(sample.messages)
        if messages and messages[-1]["role"] == "assistant":
            messages.pop()
        prompts[f"{sample.id}" if sample.id not in prompts else f"{sample.id} ({len(prompts)})"] = messages
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one JSON object with messages a line")
    return prompts


def _told(prompt: PromptComparison) -> str:
    if prompt.problem:
        return f"{prompt.name}: {prompt.problem}"
    where = prompt.answer_difference
    parted = ""
    if where:
        gap = "" if where.gap is None else f", preferred by {where.gap:.3g}"
        parted = f"; answers part at token {where.index}: {where.first}{gap}, and {where.second}"
    return f"{prompt.name}: logits within {prompt.logits:.3g}, {prompt.agreement:.0%} of the answer equal{parted}"


def _print(first: str, second: str, result: Comparison) -> None:
    rows = []
    for prompt in result.prompts:
        logits = "not compared" if prompt.logits is None else f"{prompt.logits:.2e}"
        share = "" if prompt.agreement is None else f"{prompt.agreement:.0%}"
        verdict = "same" if prompt.within(result.tolerance) else "differs"
        rows.append((prompt.name, str(sum(prompt.tiles)), str(prompt.tokens), logits, share, verdict))
    headers = ("prompt", "tiles", "tokens", "logits differ by", "answer equal", "")
    terminal.table(f"{first} against {second}", headers, rows)
    typer.echo(f"tolerance of logits {result.tolerance:g} ({result.reason})")
    typer.echo("the same model" if result.equal else "not the same model")
