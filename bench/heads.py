"""Numbers by heads against numbers as text: the same driving clips, the same steps, one scorer, one table.

    python bench/heads.py --data CLIPS [--output FOLDER] [--steps 150] [--lr 5e-4] [--layers N] [--at last]

CLIPS is driving-sim's raw folder (``minivl adapt driving-sim`` builds one under ``data/``). Nano is trained twice on
its training rows, with the loss ``answers`` and with ``heads``; ``bddx_signals`` scores both on the test split.
The row "guess" is the median of the training clips. A finished run is not trained again.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from mini_internvl import terminal
from mini_internvl.benchmarks import bddx_signals
from mini_internvl.benchmarks._bddx import read_clips
from mini_internvl.domains._clips import SIGNALS
from mini_internvl.engine import load
from mini_internvl.engine.hub import NANO
from mini_internvl.evaluate import predict
from mini_internvl.evaluate.run import score, value_text
from mini_internvl.recipes import Recipe, SourceRecipe, StageRecipe
from mini_internvl.records import Item, Prediction
from mini_internvl.train.meter import Progress
from mini_internvl.train.run import run_recipe

COLUMNS = ("RMSE", *(f"A{tau}" for tau in bddx_signals.TAUS))


def recipe(given: argparse.Namespace, name: str, loss: dict[str, Any]) -> Recipe:
    """Both ways differ in the loss alone."""
    source = SourceRecipe(kind="domain", name="driving-sim", path=str(given.data))
    stage = StageRecipe(
        name=name,
        data=(source,),
        steps=given.steps,
        loss=loss,
        lr=given.lr,
        batch_size=given.batch_size,
        micro_batch=8,
    )
    return Recipe(name=name, model=str(given.model), stages=(stage,), save_every=given.steps)


def train(given: argparse.Namespace) -> dict[str, tuple[Path, float]]:
    """Folder and seconds of each run; 0 seconds for one that was there."""
    heads = {name: {"kind": "regression"} for name in SIGNALS}
    ways = {"text": {"answers": {}}, "heads": {"heads": {"heads": heads, "layers": given.layers, "at": given.at}}}
    found = {}
    for name, loss in ways.items():
        began, told = time.monotonic(), list[Progress]()
        bar = terminal.ProgressBar(name)
        show = functools.partial(shown, bar, told)
        folder = run_recipe(recipe(given, name, loss), given.output / name, on_progress=show, workers=0)
        terminal.close()
        found[name] = folder, time.monotonic() - began if told else 0.0
    return found


def shown(bar: terminal.ProgressBar, told: list[Progress], progress: Progress) -> None:
    """One live line a run."""
    told.append(progress)
    bar(progress.step, progress.steps, f"loss {progress.loss:.3f}")


def guesses(given: argparse.Namespace, items: list[Item]) -> list[Prediction]:
    """The median of the training clips, to every question."""
    clips = read_clips(given.data, "train")
    median = {name: statistics.median(c[name] for c in clips if c.get(name) is not None) for name in SIGNALS}
    return [Prediction(item_id=item.id, text=value_text(median[item.target])) for item in items]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/heads"))
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--at", default="last")
    given = parser.parse_args()
    items = list(bddx_signals.items(given.data, "test"))
    answers = {"guess": (guesses(given, items), 0.0, 0.0)}
    for name, (folder, seconds) in train(given).items():
        engine, began = load(folder, dtype="float32"), time.monotonic()
        found = predict(engine, items)
        answers[f"by {name}" if name == "heads" else f"as {name}"] = found, seconds, time.monotonic() - began
    for signal in SIGNALS:
        rows = []
        for name, (found, *times) in answers.items():
            values = score(bddx_signals, items, found).values
            rows.append((name, *(f"{values[f'{signal}/{c}']:.2f}" for c in COLUMNS), *(f"{t:.0f}" for t in times)))
        count = sum(item.target == signal for item in items)
        title = f"{signal}, {count} clips, after {given.steps} steps of {given.batch_size}"
        terminal.table(title, ("", *COLUMNS, "training s", "answering s"), rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
