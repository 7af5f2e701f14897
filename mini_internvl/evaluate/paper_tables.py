"""What the paper's tables consist of: every column with the benchmark and the metric that it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mini_internvl.evaluate import published
from mini_internvl.evaluate.published import Published


@dataclass(frozen=True, kw_only=True)
class Column:
    """One printed column and where its number comes from."""

    label: str
    group: str = ""
    benchmark: str = ""  # name of the benchmark file; empty for a number that is only published
    metric: str = ""  # metric of the score; empty for its primary metric
    splits: tuple[str, ...] = ()  # splits that the column means, empty for any; a score of another split is marked
    only: bool = False  # whether scores of other splits have no place in the column at all, since they have their own
    digits: int = 2
    items: int = 0  # items of the official split, 0 if not known; a score over clearly fewer is marked


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table of the paper before it is filled."""

    title: str
    columns: tuple[Column, ...]  # in the order of the published values
    rows: tuple[Published, ...]
    averaged: bool = False  # whether the average of the general benchmarks and its share of the largest model follow
    remark: str = ""


def _general() -> tuple[Column, ...]:
    """The nine benchmarks in the order of the README's table, and OpenCompass' own average."""
    rows = (
        ("MMMU", "mmmu", ("val", "validation"), 900),
        ("MathVista", "mathvista", ("testmini",), 1000),
        ("AI2D", "ai2d", ("test",), 3088),
        ("ChartQA", "chartqa", ("test",), 2500),
        ("DocVQA", "docvqa", ("test",), 5188),
        ("InfoVQA", "infovqa", ("test",), 3288),
        ("OCRBench", "ocrbench", ("test",), 1000),
        ("MMB-EN", "mmbench_en", ("test",), 0),
        ("MMB-CN", "mmbench_cn", ("test",), 0),
    )
    columns = [
        Column(label=label, benchmark=name, splits=splits, items=items, digits=0 if label == "OCRBench" else 1)
        for label, name, splits, items in rows
    ]
    return (*columns, Column(label="OpenCompass", digits=1))


def _remote() -> tuple[Column, ...]:
    metrics = (
        ("rural/urban", "type/rural_urban"),
        ("presence", "type/presence"),
        ("compare", "type/comp"),
        ("avg.", "accuracy"),
    )
    columns = [
        Column(label=label, group="RSVQA-LR", benchmark="rsvqa_lr", metric=metric, splits=("test",))
        for label, metric in metrics
    ]
    columns += [
        Column(label=label, group=f"RSVQA-HR {split}", benchmark="rsvqa_hr", metric=metric, splits=(split,), only=True)
        for split in ("test1", "test2")
        for label, metric in metrics[1:]
    ]
    return (*columns, Column(label="DIOR-RSVG", benchmark="dior_rsvg", splits=("test",), items=7500))


def _medical() -> tuple[Column, ...]:
    names = (
        ("Seg C", "granularity/contour level"),
        ("Seg M", "granularity/mask level"),
        ("2D Cls", "granularity/image level"),
        ("2D Det", "granularity/box level"),
        ("2D Mcls acc.", "multi/accuracy"),
        ("2D Mcls recall", "multi/recall"),
    )
    return tuple(Column(label=label, benchmark="gmai_mmbench", metric=metric, items=4550) for label, metric in names)


def _bddx(benchmark: str, groups: Mapping[str, str], metrics: Sequence[str]) -> tuple[Column, ...]:
    """Every metric of every kind; ``groups`` names the kinds' headings."""
    return tuple(
        Column(label=metric, group=group, benchmark=benchmark, metric=f"{kind}/{metric}", splits=("test",))
        for kind, group in groups.items()
        for metric in metrics
    )


_BDDX_TEXT = _bddx(
    "bddx_text", {kind: kind for kind in ("description", "justification", "full")}, ("CIDEr", "B4", "ROUGE")
)
_BDDX_SIGNALS = _bddx(
    "bddx_signals",
    {"speed": "speed (m/s)", "turning_angle": "turning angle (degrees)"},
    ("RMSE", "A0.1", "A0.5", "A1.0", "A5.0"),
)


def _drivelm() -> tuple[Column, ...]:
    metrics = (("final", "final", 4), ("accuracy", "accuracy", 4), ("GPT", "chatgpt", 2), ("match", "match", 2))
    return tuple(
        Column(label=label, benchmark="drivelm", metric=metric, digits=digits, splits=("val",), items=15480)
        for label, metric, digits in metrics
    )


PAPER_TABLES: Mapping[str, tuple[PaperTable, ...]] = {
    "general": (
        PaperTable(
            title="General ability",
            columns=_general(),
            rows=published.GENERAL,
            averaged=True,
            remark="OpenCompass is the board's average over eight benchmarks, only published; "
            "the last column is computed, and the paper prints 74, 82 and 90 for the 1B, 2B and 4B",
        ),
    ),
    "remote": (PaperTable(title="Remote sensing", columns=_remote(), rows=published.REMOTE),),
    "medical": (PaperTable(title="Medical images: GMAI-MMBench", columns=_medical(), rows=published.MEDICAL),),
    "bddx": (
        PaperTable(title="BDD-X: description and justification", columns=_BDDX_TEXT, rows=published.BDDX_TEXT),
        PaperTable(title="BDD-X: control signals", columns=_BDDX_SIGNALS, rows=published.BDDX_SIGNALS),
    ),
    "drivelm": (PaperTable(title="DriveLM", columns=_drivelm(), rows=published.DRIVELM),),
}
"""Name on the command line -> the paper's tables."""
