"""Rows that cannot be trained on: set aside in ``quarantine.jsonl`` with their place and reason, up to a budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_internvl.data import DataError, Fault
from mini_internvl.ranks import Ranks
from mini_internvl.recipes import Recipe
from mini_internvl.train import log
from mini_internvl.train.data import MixedDataset, Unusable


class Quarantine:
    """The quarantine of a run; all processes keep the same account."""

    def __init__(self, folder: Path, datasets: Sequence[MixedDataset], recipe: Recipe, ranks: Ranks) -> None:
        self.path, self.recipe, self.ranks = folder / log.QUARANTINE, recipe, ranks
        opened = [pair for one in datasets for pair in zip(one.stage.data, one.sources, strict=True)]
        sources = {(asked.path, asked.split, source.fingerprint): source for asked, source in opened}  # of all stages
        rows = sum(len(source) for source in sources.values()) or sum(len(dataset) for dataset in datasets)
        self.allowed = max(1, int(recipe.max_faults * rows)) if recipe.max_faults else 0
        self.faults: dict[tuple[str, str], str] = {}
        faults = (fault for _, source in opened for fault in source.faults)  # a stage may refuse more than another
        self.known = list({(str(fault.file), fault.place): fault for fault in faults}.values())
        self.check([*self.known])

    def begin(self) -> None:
        """Read what the run has set aside before, and set aside what else was found when the data was opened."""
        self.faults = self.ranks.by_first(lambda: _read(self.path))
        found = {(str(fault.file), fault.place): fault.reason for fault in self.known}
        self._write({key: why for key, why in found.items() if key not in self.faults}, {})

    def add(self, unusable: Sequence[Unusable], stage: str, step: int) -> None:
        """Set rows aside that a step has met, each once; DataError where they are more than the budget allows."""
        met = [one for mine in self.ranks.exchange(list(unusable)) for one in mine]
        fresh = {}
        for one in sorted(met, key=lambda one: one.number):
            if (one.file, one.place) not in self.faults:
                fresh[one.file, one.place] = one.reason
        if not fresh:
            return
        self._write(fresh, {"stage": stage, "step": step})
        self.check([Fault(file=Path(f), place=place, reason=why) for (f, place), why in self.faults.items()])

    def _write(self, fresh: dict[tuple[str, str], str], met: dict[str, Any]) -> None:
        self.faults |= fresh
        if fresh and self.ranks.first:
            rows = [{"file": file, "place": place, "reason": why, **met} for (file, place), why in fresh.items()]
            log.append(self.path, rows)

    def check(self, faults: Sequence[Fault]) -> None:
        """DataError with the list, where there are more faults than the budget allows."""
        if len(faults) > self.allowed:
            raise DataError.of(faults, self._remedy(len(faults)))

    def _remedy(self, count: int) -> str:
        if not self.recipe.max_faults:
            return "mend the rows or take them out, or allow some (max_faults)"
        return (
            f"{count:,} rows cannot be used, more than the {self.allowed:,} that max_faults "
            f"{self.recipe.max_faults:g} allows; mend them or take them out, or raise it"
        )


def _read(path: Path) -> dict[tuple[str, str], str]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")  # a name may hold U+2028
    rows = [json.loads(line) for line in lines if line]
    return {(row["file"], row["place"]): row["reason"] for row in rows}
