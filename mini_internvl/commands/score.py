"""``minivl score``: anyone's answers to a benchmark, scored without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mini_internvl.commands import _evaluation as evaluate
from mini_internvl.commands._options import AsJson, Data, JudgeModel, Kinds, ProtocolName, Seed, Split
from mini_internvl.evaluate import external, keys, outputs
from mini_internvl.evaluate.cache import AnswerCache

EXAMPLE = "minivl score chartqa answers.jsonl --data data"


def command(
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    answers: Annotated[Path, typer.Argument(help="Answers of any model: jsonl or json with ids.")],
    data: Data = None,
    split: Split = None,
    protocol: ProtocolName = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Size of the random sample that was answered.")] = None,
    seed: Seed = None,
    kinds: Kinds = "shapes,words,charts",
    judge: JudgeModel = "",
    output: Annotated[Path | None, typer.Option(help="Folder that gets the score's files.")] = None,
    json: AsJson = False,
) -> None:
    """Score answers that another tool, or an earlier run, has written."""
    from mini_internvl.commands._evaluation import Settings

    settings = Settings(
        benchmarks=[benchmark],
        data=data,
        split=split,
        protocol=protocol,
        limit=limit,
        seed=seed,
        kinds=kinds,
        judge=judge,
        output=output,
    )
    raise typer.Exit(run(settings, answers, as_json=json))


SHOWN = 3


def run(settings: evaluate.Settings, answers: Path, *, as_json: bool) -> int:
    """Read, match, score, print; with an output folder write it as ``minivl eval`` does. Returns the exit code."""
    [(name, benchmark)] = evaluate.find_benchmarks(settings.benchmarks).items()
    if settings.data is None and name != evaluate.SYNTH:
        raise ValueError(f"{name} reads its questions from a folder; give it with --data")
    evaluate.check(settings, {name: benchmark})
    pairs = external.read(answers)
    asked = evaluate.read(name, benchmark, settings)
    if not asked.scored:
        raise ValueError(f"the references of {name}'s split {asked.split} are not published; it cannot be scored here")
    matched = external.match(asked.items, pairs)
    if not matched.predictions:
        ids = f"its ids are {_some(matched.unmatched)}, not {_some(matched.missing)}"
        raise ValueError(f"no answer of {answers} belongs to {name}, split {asked.split}: {ids}")
    _tell(matched, len(asked.items), answers)
    model = {"name": answers.stem, "path": str(answers), "sha256": keys.file_hash(answers), "parameters": 0}
    if settings.output:
        outputs.check_model(settings.output, model)
    cache = AnswerCache(settings.output / evaluate.CACHE) if settings.output else None
    judge = evaluate.make_judge(settings, cache)
    result = asked.result(matched.predictions, model, judge)
    result["notes"] |= {"missing": len(matched.missing), "unmatched": len(matched.unmatched)}
    if settings.output:
        asked.write(settings.output, matched.predictions, result)
    if cache:
        cache.close()
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False, indent=1))
    else:
        evaluate.print_score(result, answers.stem)
    return int(bool(judge and judge.failed))


def _tell(matched: external.Matched, items: int, path: Path) -> None:
    if matched.unmatched:
        typer.echo(f"{path}: {len(matched.unmatched)} answers name no item: {_some(matched.unmatched)}", err=True)
    if matched.missing:
        typer.echo(
            f"{len(matched.missing)} of {items} items have no answer and count as empty: {_some(matched.missing)}",
            err=True,
        )
    if matched.doubled:
        typer.echo(f"{path}: {matched.doubled} items are answered again; the last answer counts", err=True)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
