"""The domains: one file each, found by its name; a file of your own is given by its path.

A domain file turns raw annotations into training samples and says how to adapt to them. It has::

    TITLE            the domain's name in print.
    SPLITS           names of the splits that ``convert`` knows: the first is trained on, the second, if there is one,
                     is held out while training. Test splits belong to the benchmarks, which read them themselves.
    convert(raw: Path, split: str) -> Iterator[Sample | Fault]
                     raw folder -> samples, ``independent`` where the questions of one do not build on each other, and a
                     Fault for each record that cannot be used. ValueError when the folder as a whole is wrong. For the
                     same files it yields the same again: a conversion that was ended goes on behind what it has.
    RECIPE           AdaptRecipe: the suggested settings for the released models.
    NANO_RECIPE      the same for nano (optional); without it RECIPE, with what ``for_nano`` changes.
    BENCHMARKS       name of a benchmark, or path of a benchmark file beside this one -> DomainBenchmark.
    EXAMPLE          DomainExample: raw files in small, and the samples that they convert to.

and, where the raw data can be made here::

    build(folder, *, seed, progress, ...) -> Path
                     writes the raw folder; numbers such as ``train=600`` may follow (``--build train=600``). It calls
                     ``progress(done, total)`` as it goes; an exception from there must leave a folder that the next
                     call goes on with.

Modules whose name begins with an underscore are helpers, not domains. Importing a domain is cheap: extras are imported
inside the functions that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mini_internvl import plugins
from mini_internvl.benchmarks._example import ExampleImage, Files
from mini_internvl.data import Fault
from mini_internvl.recipes import PARTS, RecipeError, SourceRecipe, StageRecipe
from mini_internvl.records import Sample

__all__ = ["AdaptRecipe", "Domain", "DomainBenchmark", "DomainExample", "ExampleImage", "load_domain"]

REDUCTIONS = ("token", "square", "sample")  # how a token of an answer may weigh (``train/losses/answers.py``)
CONTRACT = ("SPLITS", "convert")  # what every domain has; :func:`load_domain` checks what an adaptation needs beside it


@dataclass(frozen=True, kw_only=True)
class AdaptRecipe:
    """How to adapt; the defaults are the paper's domain fine-tuning, the batch cut to what small data wants.

    The names that a training stage has too mean what they mean there (``recipes.StageRecipe``).
    """

    epochs: float = 1.0  # passes over the training split
    lr: float = 1e-5  # when all weights train
    lora_lr: float = 2e-4  # when adapters train
    ratio: float = 1.0  # general to domain samples, the paper's r; 0 mixes nothing in, which forgets more
    batch_size: int = 16
    micro_batch: int = 1
    max_tiles: int = 12
    max_length: int = 8192
    loss_reduction: str = "square"  # one of REDUCTIONS
    weight_decay: float = 0.01
    warmup_ratio: float = 0.03
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        positive = ("epochs", "lr", "lora_lr", "batch_size", "micro_batch", "max_tiles", "max_length")
        for name in (*positive, "ratio", "weight_decay", "warmup_ratio", "drop_path"):
            value = getattr(self, name)
            if value < 0 or (value == 0 and name in positive):
                raise RecipeError(f"{name} is {value}; it must be {'above 0' if name in positive else '0 or above'}")
        if self.loss_reduction not in REDUCTIONS:
            raise RecipeError(f'loss_reduction is "{self.loss_reduction}"; known: {", ".join(REDUCTIONS)}')

    def stage(
        self, data: tuple[SourceRecipe, ...], *, rows: int, train: tuple[str, ...] = PARTS, lora: bool = False
    ) -> StageRecipe:
        """The one stage of an adaptation to ``rows`` domain samples, mixed with general ones."""
        return StageRecipe(
            name="adapt",
            data=data,
            steps=max(1, round(self.epochs * rows * (1 + self.ratio) / max(1, self.batch_size))),
            train=train,
            lr=self.lora_lr if lora else self.lr,
            batch_size=self.batch_size,
            micro_batch=min(self.micro_batch, self.batch_size),
            max_tiles=self.max_tiles,
            max_length=self.max_length,
            loss={"answers": {"reduction": self.loss_reduction}},
            weight_decay=self.weight_decay,
            warmup_ratio=self.warmup_ratio,
            drop_path=self.drop_path,
        )

    def for_nano(self) -> AdaptRecipe:
        """What nano wants where a domain says nothing of it: a higher rate, fewer tiles, cheap large batches."""
        return replace(
            self,
            lr=2.5e-4,
            epochs=max(3.0, self.epochs),
            micro_batch=8,
            max_tiles=min(6, self.max_tiles),
            loss_reduction="token",
            drop_path=0.0,
        )


@dataclass(frozen=True, kw_only=True)
class DomainBenchmark:
    """What of a benchmark measures a domain."""

    test: str | None = "test"  # split that is scored before and after; ``None`` leaves the benchmark to the validation
    validation: str | None = None  # split whose primary metric picks the best checkpoint while training
    folder: str = ""  # folder below the raw data with the benchmark's files; empty for the raw folder


@dataclass(frozen=True, kw_only=True)
class DomainExample(Files):
    """Raw files in small, and what they convert to."""

    samples: Mapping[str, Sequence[Sample]]
    """Split -> samples, in order; their image paths are relative to the raw folder."""
    faults: Mapping[str, int]
    """Split -> how many of its records are faults on purpose."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A domain file that keeps the contract, its splits, recipes and ``build`` as the contract says."""

    name: str  # the file's name without its ending
    title: str
    splits: tuple[str, ...]
    convert: Callable[[Path, str], Iterator[Sample | Fault]]
    recipe: AdaptRecipe
    nano_recipe: AdaptRecipe
    benchmarks: Mapping[str, tuple[ModuleType, DomainBenchmark]]  # name of each -> its file, and how it is used
    build: Callable[..., Path] | None
    file: Path
    about: Callable[[Path], Sequence[str]] | None = None  # lines about a built folder, of data of one's own alone
    changed: Callable[..., bool] | None = None  # whether ``build`` would make another folder of it, likewise


def load_domain(name: str) -> Domain:
    """A domain by its name, or by the path of a file of your own, checked against the contract.

    The path of a data file or of a folder makes a domain of what lies there (``_own``).
    ValueError names the file, what is wrong in it and what belongs there.
    """
    path = Path(name)
    if not name.endswith(".py") and plugins.short_name(name) not in plugins.list_names("domains"):
        if path.exists():
            from mini_internvl.domains._own import own_domain

            return own_domain(path)
        if path.suffix or len(path.parts) > 1:
            raise ValueError(f"{name} does not exist; give a domain's name, or the path of data or of a domain file")
    module = plugins.find("domains", name)
    where = f"domain {name}"
    kinds: Mapping[str, tuple[Any, str]] = {
        "TITLE": (str, "the domain's name in print"),
        "SPLITS": (tuple, 'the names of its splits, for instance ("train", "validation")'),
        "convert": (Callable, "a function (raw, split) -> samples and faults"),
        "RECIPE": (AdaptRecipe, "an AdaptRecipe"),
        "BENCHMARKS": (Mapping, "names of benchmarks, each with a DomainBenchmark"),
        "NANO_RECIPE": (AdaptRecipe, "an AdaptRecipe"),
    }
    found: dict[str, Any] = {}
    for wanted, (kind, what) in kinds.items():
        found[wanted] = value = getattr(module, wanted, None)
        if value is None and wanted != "NANO_RECIPE":
            raise ValueError(f"{where} has no {wanted}: {what} (docs/adapt.md)")
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{where}: {wanted} is a {type(value).__name__}; it must be {what}")
    splits = found["SPLITS"]
    if not splits or not all(isinstance(split, str) for split in splits) or len(set(splits)) < len(splits):
        raise ValueError(
            f"{where}: SPLITS is {splits!r}; it must hold different names, that of the training split first"
        )
    file = Path(str(module.__file__))
    return Domain(
        name=file.stem.replace("_", "-"),
        title=found["TITLE"],
        splits=splits,
        convert=found["convert"],
        recipe=found["RECIPE"],
        nano_recipe=found["NANO_RECIPE"] or found["RECIPE"].for_nano(),
        benchmarks=_benchmarks(where, file.parent, found["BENCHMARKS"]),
        build=getattr(module, "build", None),
        file=file,
    )


def _benchmarks(where: str, folder: Path, given: Mapping[str, Any]) -> dict[str, tuple[ModuleType, DomainBenchmark]]:
    """The benchmark files, and how they are used, by name; every split is there and can be scored."""
    found: dict[str, tuple[ModuleType, DomainBenchmark]] = {}
    for name, use in given.items():
        if not isinstance(use, DomainBenchmark):
            raise ValueError(f"{where}: BENCHMARKS[{name!r}] is a {type(use).__name__}; it must be a DomainBenchmark")
        module = plugins.find("benchmarks", str(folder / name) if name.endswith(".py") else name)
        scored = [split for split in module.SPLITS if split not in getattr(module, "UNSCORED", ())]
        for split in (use.test, use.validation):
            if split is not None and split not in scored:
                raise ValueError(f'{where}: {name} scores no split "{split}"; there are: {", ".join(scored) or "none"}')
        found[plugins.short_name(name)] = (module, use)
    if not any(use.test for _, use in found.values()):
        raise ValueError(f"{where}: no benchmark of BENCHMARKS has a test split, so nothing could be scored")
    return found
