"""``minivl eval``: one benchmark, one model, one table."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from mini_internvl import load, plugins, terminal
from mini_internvl.evaluate import evaluate
from mini_internvl.records import Item


def run(
    name: str,
    model: str | None,
    data: Path | None,
    kinds: str,
    limit: int | None,
    seed: int | None,
    batch_size: int,
    output: Path | None,
    device: str,
    dtype: str,
    *,
    as_json: bool,
) -> None:
    """Ask, score, print. Raises ValueError for an unknown benchmark or missing data."""
    benchmark = plugins.find("benchmarks", name)
    items = _items(benchmark, name, data, kinds, limit, seed)
    engine = load(model, device=device, dtype=dtype)
    score, _ = evaluate(
        engine, benchmark, items, batch_size=batch_size, keep=output, progress=terminal.Counter(f"asking {name}")
    )
    if as_json:
        row = {"benchmark": score.benchmark, "items": score.items, "values": score.values, "notes": score.notes}
        typer.echo(json.dumps(row, indent=1))
        return
    counts = score.notes.get("counts", {})
    rows = [
        (
            key,
            f"{value:.1f}",
            f"{_standard_error(value, counts[key]):.1f}" if key in counts else "",
            str(counts.get(key, "")),
        )
        for key, value in score.values.items()
    ]
    terminal.table(f"{name}: {model or 'nano'}, {score.items} items", ("", "score", "± s.e.", "items"), rows)


def _items(benchmark: Any, name: str, data: Path | None, kinds: str, limit: int | None, seed: int | None) -> list[Item]:
    if name == "synth":
        names = benchmark.kinds() if kinds == "all" else [kind for kind in kinds.split(",") if kind]
        settings = {"names": names, "count": limit or 200}
        return list(benchmark.items(**settings, **({} if seed is None else {"seed": seed})))
    if data is None:
        raise ValueError(f"{name} reads its questions from a folder; give it with --data")
    return list(islice(benchmark.items(data), limit))


def _standard_error(per_cent: float, count: int) -> float:
    share = per_cent / 100
    return 100 * math.sqrt(share * (1 - share) / count)
