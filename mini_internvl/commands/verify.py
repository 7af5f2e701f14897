"""``minivl verify``: whether two checkpoints are the same model, on prompts with and without images; or a
checkpoint and its GGUF files in llama.cpp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mini_internvl import terminal
from mini_internvl.commands._options import AsJson, Device, FloatDtype, echo_json
from mini_internvl.data.rows import read_samples
from mini_internvl.engine import load
from mini_internvl.engine.compare import Comparison, PromptComparison, compare
from mini_internvl.gguf.compare import compare_gguf
from mini_internvl.records import Message

EXAMPLE = "minivl verify OpenGVLab/InternVL2-1B checkpoints/1B-native"


def command(
    first: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    second: Annotated[str, typer.Argument(help="The one to compare with it, or a folder of GGUF files.")],
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts as jsonl of messages; built-in ones when left out.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest greedy answer in tokens.")] = 24,
    tolerance: Annotated[
        float | None, typer.Option(help="Allowed difference of logits; by the types when left out: 0.001 or 0.25.")
    ] = None,
    device: Device = "auto",
    dtype: FloatDtype = "auto",
    json: AsJson = False,
) -> None:
    """Compare two checkpoints: token ids, logits and greedy answers. Exit code 1 when they differ.

    Where the second is a folder of GGUF files, llama.cpp answers for it (pip install llama-cpp-python).
    """
    messages = None if prompts is None else read_prompts(prompts)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "tolerance": tolerance,
        "progress": lambda done: terminal.err.print(f"  {_describe(done)}", markup=False, soft_wrap=True),
    }
    engine = load(first, "own", dtype=dtype, device=device)
    if any(Path(second).glob("*.gguf")):
        result = compare_gguf(engine, Path(second), messages, **options)
    else:
        result = compare(engine, load(second, "own", dtype=dtype, device=device), messages, **options)
    if json:
        echo_json({**dataclasses.asdict(result), "equal": result.equal})
    else:
        _print(first, second, result)
    raise typer.Exit(0 if result.equal else 1)


def read_prompts(path: Path) -> dict[str, Sequence[Message]]:
    """Prompts of a jsonl file by their ids, an answer at the end left out; ValueError names a wrong line."""
    prompts: dict[str, Sequence[Message]] = {}
    for sample in read_samples(path):
        messages = list(sample.messages)
        if messages and messages[-1]["role"] == "assistant":
            messages.pop()
        prompts[f"{sample.id}" if sample.id not in prompts else f"{sample.id} ({len(prompts)})"] = messages
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one JSON object with messages a line")
    return prompts


def _describe(prompt: PromptComparison) -> str:
    if prompt.problem:
        return f"{prompt.name}: {prompt.problem}"
    text = f"{prompt.name}: logits within {prompt.logits:.3g}, {prompt.agreement:.0%} of the answer equal"
    if where := prompt.answer_difference:
        gap = "" if where.gap is None else f", preferred by {where.gap:.3g}"
        text += f"; answers part at token {where.index}: {where.first}{gap}, and {where.second}"
    return text


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
