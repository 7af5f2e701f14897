"""``minivl score``: anyone's answers to a benchmark, scored without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mini_internvl.commands import _evaluation as evaluate
from mini_internvl.commands._options import AsJson, Data, JudgeModel, Kinds, ProtocolName, Seed, Split, echo_json
from mini_internvl.evaluate import external, outputs
from mini_internvl.evaluate.cache import AnswerCache
from mini_internvl.files import file_hash

EXAMPLE = "minivl score chartqa answers.jsonl --data data"
SHOWN_IDS = 3


def command(
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    answers: Annotated[Path, typer.Argument(help="Answers of any model with ids: jsonl, json, tsv, csv or xlsx.")],
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
    given = {name: value for name, value in locals().items() if name not in ("benchmark", "answers", "json")}
    settings = evaluate.Settings(benchmarks=[benchmark], **given)
    raise typer.Exit(run(settings, answers, as_json=json))


def run(settings: evaluate.Settings, answers: Path, *, as_json: bool) -> int:
    """Read, match, score, print; with an output folder write it as ``minivl eval`` does. Returns the exit code."""
    [(name, benchmark)] = evaluate.find_benchmarks(settings).items()
    pairs = external.read(answers)
    asked = evaluate.read(name, benchmark, settings)
    if not asked.scored:
        raise ValueError(f"the references of {name}'s split {asked.split} are not published; it cannot be scored here")
    matched = external.match(asked.items, pairs)
    if not matched.predictions:
        ids = f"its ids are {_some(matched.unmatched)}, not {_some(matched.missing)}"
        raise ValueError(f"no answer of {answers} belongs to {name}, split {asked.split}: {ids}")
    _report_mismatches(matched, len(asked.items), answers)
    model = {"name": answers.stem, "answers": str(answers), "sha256": file_hash(answers), "parameters": 0}
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
        echo_json(result)
    else:
        evaluate.print_score(result, answers.stem)
    return int(bool(judge and judge.failed))


def _report_mismatches(matched: external.Matched, items: int, path: Path) -> None:
    missing, unmatched = matched.missing, matched.unmatched
    lines = {
        f"{path}: {len(unmatched)} answers name no item: {_some(unmatched)}": unmatched,
        f"{len(missing)} of {items} items have no answer and count as empty: {_some(missing)}": missing,
        f"{path}: {matched.doubled} items are answered again; the last answer counts": matched.doubled,
    }
    for line, found in lines.items():
        if found:
            typer.echo(line, err=True)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_IDS]) + (", ..." if len(names) > SHOWN_IDS else "")
