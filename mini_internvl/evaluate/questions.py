"""One benchmark's questions in an evaluation: read, scored, and written with their answers into a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from mini_internvl import plugins
from mini_internvl.evaluate import keys, outputs
from mini_internvl.evaluate.blind import blinded
from mini_internvl.evaluate.judge import Judge
from mini_internvl.evaluate.run import score
from mini_internvl.files import write_json
from mini_internvl.inputs import thinking
from mini_internvl.inputs.hashes import ImageHashes
from mini_internvl.records import Item, Prediction

PER_KIND = 200  # drawn questions of each kind, without a limit


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The items of one benchmark that are asked, with what its score file says of them."""

    name: str
    benchmark: ModuleType
    items: Sequence[Item]
    of: int  # how many items there are in all
    split: str
    protocol: str | None = None  # how they are asked and scored; ``None`` for the benchmark's first protocol
    data: Path | None = None
    limit: int | None = None
    seed: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)  # what else the score file says: of drawn items, of tiles

    @property
    def scored(self) -> bool:
        """Whether the references are published; otherwise the answers can only be exported."""
        return self.split not in getattr(self.benchmark, "UNSCORED", ())

    @property
    def blind(self) -> bool:
        """Whether they are asked with grey in place of their images."""
        return bool(self.more.get("blind"))

    def blinded(self) -> Questions:
        """The same questions, to be answered blindly."""
        return replace(self, items=blinded(self.items), more={**self.more, "blind": True})

    def thinking(self) -> Questions:
        """The same questions, to be thought about aloud before they are answered."""
        items = [
            replace(
                item,
                messages=cast(Any, thinking.thinking(item.messages)),
                max_new_tokens=item.max_new_tokens + thinking.TOKENS,
                temperature=thinking.TEMPERATURE,
            )
            for item in self.items
        ]
        return replace(self, items=items, more={**self.more, "think": True})

    @property
    def protocol_name(self) -> str:
        return self.protocol or next(iter(self.benchmark.PROTOCOLS))

    def result(
        self, predictions: Sequence[Prediction], model: Mapping[str, Any], judge: Judge | None = None
    ) -> dict[str, Any]:
        """Score answers; the content of ``score.json``."""
        found = score(self.benchmark, self.items, predictions, protocol=self.protocol, judge=judge)
        if judge is not None:  # what of it came from the cache differs between equal runs, so it is reported elsewhere
            judged = {
                "model": judge.engine.address.model,
                "answered": judge.asked + judge.cached,
                "failed": judge.failed,
            }
            odd = f"{judge.odd} replies of the judge were no text; the answer cache holds them" if judge.odd else ""
            found = replace(found, notes={**found.notes, "judge": judged}, partial=found.partial or odd)
        return outputs.result(self.benchmark, found, self.facts(model))

    def facts(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """What a score was measured on and with, fit for ``score.json``."""
        cut = len(self.items) < self.of
        prompts = [keys.plain_prompt(item.messages) for item in self.items]
        data = None if self.data is None else str(self.data)
        own = plugins.own_path(self.benchmark)
        return {
            **({"benchmark_file": own} if own else {}),
            "split": self.split,
            "protocol": self.protocol_name,
            "items": len(self.items),
            "of": self.of,
            "limit": self.limit if cut else None,
            "seed": self.seed if cut else None,
            "model": dict(model),
            "prompt_sha256": keys.digest(prompts),
            "max_tiles": _one_or_all(item.max_tiles for item in self.items),
            "max_new_tokens": _one_or_all(item.max_new_tokens for item in self.items),
            "decoding": _one_or_all(keys.decoding(item) for item in self.items),
            "data": {"path": data, "sha256": keys.items_hash(self.items, ImageHashes())},
            "versions": outputs.versions(),
            **self.more,
        }

    def check_kept(self, run: Path) -> None:
        """Refuse to replace the score of a larger sample, or of all items, in a run's folder."""
        if len(self.items) < self.of:
            folder = outputs.result_folder(run, self.name, self.split, self.protocol_name)
            outputs.check_kept(folder, len(self.items))

    def write(self, run: Path, predictions: Sequence[Prediction], result: Mapping[str, Any] | None) -> Path:
        """Write answers and score below the run's folder; returns the benchmark's own."""
        folder = outputs.result_folder(run, self.name, self.split, self.protocol_name)
        rows = outputs.rows(self.benchmark, self.items, predictions, protocol=self.protocol, scored=self.scored)
        outputs.write_lines(folder / outputs.PREDICTIONS, rows)
        if result is not None:
            write_json(folder / outputs.SCORE, result)
        return folder


def _one_or_all(values: Iterable[Any]) -> Any:
    """The value that all items share, or the different ones."""
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else sorted(found, key=lambda value: (value is not None, value))


def read_questions(
    name: str,
    benchmark: ModuleType,
    *,
    data: Path | None = None,
    split: str | None = None,
    protocol: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    kinds: str = "",
    max_tiles: int | None = None,
) -> Questions:
    """Read a benchmark's files, or draw its items; DataError lists what is wrong with the files.

    ``split`` and ``protocol`` are the benchmark's first when ``None``. ``limit`` and ``seed`` make a random sample;
    for a drawn benchmark they are the images of each kind and their seed, and ``kinds`` its kinds, separated by
    commas, or all. ``max_tiles`` replaces the items' own limit.
    """
    fixed: dict[str, Any] = {"name": name, "benchmark": benchmark, "split": split or benchmark.SPLITS[0]}
    fixed |= {"protocol": protocol, "data": data, "limit": limit, "seed": seed or 0}
    if hasattr(benchmark, "kinds"):
        names = benchmark.kinds() if kinds == "all" else [kind for kind in kinds.split(",") if kind]
        drawn = {"names": names, "count": limit or PER_KIND, "seed": benchmark.SEED if seed is None else seed}
        items = list(benchmark.items(split=split, **drawn))
        return Questions(**fixed, items=items, of=len(items), more=drawn)
    options = {"protocol": protocol} if protocol else {}
    every = list(benchmark.items(data, split, **options))
    if max_tiles:
        every = [replace(item, max_tiles=max_tiles) for item in every]
    items = outputs.sample(benchmark, every, limit, seed or 0)
    more = {"tiles_setting": max_tiles} if max_tiles else {}
    return Questions(**fixed, items=items, of=len(every), more=more)
