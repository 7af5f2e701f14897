"""What the page says of each benchmark: its metrics with their errors, how two runs differ, and what to beware of."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mini_internvl.report import paired, settings, svg
from mini_internvl.report.folders import UNSEEING, Result
from mini_internvl.report.page import number, signed, words
from mini_internvl.report.paired import Difference

CONDITIONS = (
    *("blind", "split", "protocol", "prompt_sha256", "max_tiles", "max_new_tokens", "decoding", "seed"),
    "data sha256",
)
"""Settings that must be the same for two runs to be compared."""
OF_ITEMS = ("prompt_sha256", "seed", "data sha256")  # those of them that follow from which items were asked
EQUAL = 1e-6  # values as near as this are the same: smoothing leaves 1e-12 of BLEU where no four words agree
FEW_ITEMS = 50  # with fewer items than this, a warning says so
UNREADABLE = {
    "unreadable": "could not be read and count as wrong",
    "empty": "are empty and count as wrong",
    "missing": "are missing and count as wrong",
    "random": "could not be read and were replaced by a random choice",
    "undecided": "need a judge to be read",
    "broken": "could not be read and count as wrong",
}
"""Counts in a score's notes that a reader must know first -> what such answers are."""
UNREADABLE_SHARE = 0.05  # share of unreadable answers from which a warning says so; all counts stand with the benchmark
MAX_WORSE_NAMED = 6


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric of a benchmark, in one run or two; a standard error is NaN without one."""

    metric: str
    label: str
    value: float
    error: float
    items: int | None
    higher_is_better: bool
    other: float = math.nan
    other_error: float = math.nan
    difference: Difference | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)  # by the names of trivial rules

    @property
    def result(self) -> str:
        """ "better", "worse", "not clear", "same"; empty where there is nothing to compare."""
        if self.difference is None or math.isnan(self.difference.value):
            return ""
        if not self.difference.clear:
            return "same" if abs(self.difference.value) < EQUAL else "not clear"
        return "better" if (self.difference.value > 0) == self.higher_is_better else "worse"


@dataclass(kw_only=True)
class Section:
    """One benchmark; ``states`` is class of an example (see :mod:`paired`) -> how many of all items."""

    result: Result
    other: Result | None
    anchor: str
    lines: Mapping[str, Line]
    states: Mapping[str, int] = field(default_factory=dict)

    @property
    def primary(self) -> Line:
        """The metric that stands for the benchmark."""
        name = self.result.primary_metric
        empty = Line(metric=name, label=name, value=math.nan, error=math.nan, items=None, higher_is_better=True)
        return self.lines.get(name, empty)

    @property
    def groups(self) -> list[tuple[str, float, list[Line]]]:
        """(heading, end of the bars, metrics) by what stands before the first slash, those without one first."""
        groups: dict[str, list[Line]] = {}
        for metric, line in self.lines.items():
            group, slash, label = metric.partition("/")
            groups.setdefault(group if slash else "", []).append(replace(line, label=label) if slash else line)
        return [(name, self.bar_end(part), part) for name, part in groups.items()]

    def bar_end(self, lines: Sequence[Line]) -> float:
        """Where bars end: the primary metric's largest value, or 100 for percentages, or the largest of all."""
        values = [v for line in lines if line.higher_is_better for v in (line.value, line.other) if math.isfinite(v)]
        if any(line.metric == self.result.primary_metric for line in lines):
            values.append(self.result.largest)
        largest = max(values, default=0.0)
        return next((end for end in (min(self.result.largest, 100.0), 100.0) if largest <= end), largest)

    @property
    def about(self) -> list[str]:
        """What the benchmark is and what the protocol means, one sentence each."""
        module = self.result.module
        first = (inspect.getdoc(module) or "").split("\n\n")[0].replace("``", "") if module else ""
        protocol = getattr(module, "PROTOCOLS", {}).get(self.result.text("protocol"), "")
        return [" ".join(first.split()), f"Protocol {self.result.text('protocol')}: {protocol}" if protocol else ""]

    @property
    def counted(self) -> list[tuple[str, str]]:
        """What scoring counted, (name, "97 → 0") or (name, "150") where both runs agree; tables are left out."""
        sides = [dict(settings.flat(_counts(r.notes), hidden=())) for r in (self.other, self.result) if r]
        pairs = {key: [side.get(key, "0") for side in sides] for side in sides for key in side}
        return [(words(key), " → ".join(dict.fromkeys(pair))) for key, pair in pairs.items()]


def _counts(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Notes that are one number or text, or some by name; not the tables of official reports."""
    inner = {key: list(value.values()) if isinstance(value, Mapping) else [value] for key, value in notes.items()}
    return {key: notes[key] for key, values in inner.items() if not any(isinstance(v, list | Mapping) for v in values)}


def compare(
    results: Sequence[Result],
    others: Sequence[Result] | None = None,
    baselines: Mapping[str, Sequence[Result]] | None = None,
) -> list[Section]:
    """Each benchmark of a run, beside the same benchmark of another run and of what answers without seeing."""
    sections = []
    for place, result in enumerate(results, 1):
        other = _partner(result, others or ())
        trivial = {name: _partner(result, found) for name, found in (baselines or {}).items()}
        values = {**_told_baselines(result), **{name: found.values for name, found in trivial.items() if found}}
        theirs = {answer.id: answer for answer in other.answers} if other else {}
        sections.append(
            Section(
                result=result,
                other=other,
                anchor=f"benchmark-{place}",
                lines={metric: _line(metric, result, other, values) for metric in result.values},
                states=Counter(paired.state(a, theirs.get(a.id), compared=others is not None) for a in result.answers),
            )
        )
    return sections


def _partner(result: Result, others: Sequence[Result]) -> Result | None:
    """The other run's result of the same benchmark, best with the same split and protocol."""
    same = [other for other in others if other.benchmark == result.benchmark]
    alike = [sum(other.text(key) == result.text(key) for key in ("split", "protocol")) for other in same]
    return same[alike.index(max(alike))] if same else None


def baseline_names(sections: Sequence[Section]) -> list[str]:
    """Of all that answers without seeing."""
    return list(dict.fromkeys(name for s in sections for line in s.lines.values() for name in line.baselines))


def _told_baselines(result: Result) -> dict[str, Mapping[str, float]]:
    """(trivial rule -> its values), where the score itself has them; a lone number is of the primary metric."""
    found = result.facts.get("baselines")
    told = {
        str(name): value if isinstance(value, Mapping) else {result.primary_metric: value}
        for name, value in (found.items() if isinstance(found, Mapping) else ())
    }
    return {
        name: {metric: float(number) for metric, number in values.items() if isinstance(number, int | float)}
        for name, values in told.items()
    }


def _line(
    metric: str, result: Result, other: Result | None, baselines: Mapping[str, Mapping[str, float]]
) -> Line:  # fmt: skip
    return Line(
        metric=metric,
        label=metric,
        value=result.values[metric],
        error=result.error(metric),
        items=result.count(metric),
        higher_is_better=result.higher_is_better(metric),
        other=other.values.get(metric, math.nan) if other else math.nan,
        other_error=other.error(metric) if other else math.nan,
        difference=paired.difference(metric, result, other) if other else None,
        baselines={name: values[metric] for name, values in baselines.items() if metric in values},
    )


def bars(line: Line, end: float) -> str:
    """The image of a metric; one where less is better has none, since its bars would praise the worse."""
    others = [("other", line.other, line.other_error)] if line.difference else []
    return svg.error_bars([*others, ("this", line.value, line.error)], end) if line.higher_is_better else ""


def verdict(sections: Sequence[Section], names: tuple[str, str]) -> str:
    """The comparison in one plain sentence that claims no more than is clear."""
    compared = [section for section in sections if section.other]
    this, other = names
    found = Counter(section.primary.result for section in compared)
    if len(compared) == 1:
        line, title = compared[0].primary, compared[0].result.title
        finding = f"{this} is {line.result} than {other} on {title}"
        if line.result not in ("better", "worse"):
            finding = f"no clear difference between {this} and {other} on {title}"
        if line.difference is None or math.isnan(line.difference.value):
            return f"{finding}."
        error = "" if math.isnan(line.difference.error) else f" ± {number(line.difference.error)}"
        return f"{finding}: {words(line.metric)} {signed(line.difference.value)}{error} on {line.items:,} items."
    unclear = len(compared) - found["better"] - found["worse"]
    end = f"; no clear difference on {unclear}" if unclear else ""
    return (
        f"{this} is better than {other} on {found['better']} of {len(compared)} benchmarks, "
        f"worse on {found['worse']}{end}."
    )


def warnings(sections: Sequence[Section], names: tuple[str, str], others: Sequence[Result] | None) -> Iterator[str]:
    """What a reader must know before the metrics, one sentence each, the gravest first."""
    sides = [(s.result, f", {names[0]}" if s.other else "") for s in sections]
    sides += [(s.other, f", {names[1]}") for s in sections if s.other]
    yield from _unreadable(sides)
    for result, name in sides:
        yield from (f"{result.title}{name}: {sentence.rstrip('.')}." for _, sentence in result.badges)
    worse = [f"{s.result.title} {words(m)}" for s in sections for m, line in s.lines.items() if line.result == "worse"]
    if worse:
        more = f" and {len(worse) - MAX_WORSE_NAMED} more" if len(worse) > MAX_WORSE_NAMED else ""
        yield f"Clearly worse than {names[1]}: {', '.join(worse[:MAX_WORSE_NAMED])}{more}."
    for results, name in (([s.result for s in sections], names[0]), (others or (), names[1])):
        models = {str(settings.model(result).get("sha256") or settings.model(result).get("name")) for result in results}
        if len(models) > 1:
            yield f"The scores of {name} come from {len(models)} different models."
    yield from unseeing(sections)
    for section in sections:
        yield from _asked_differently(section)
    few = [f"{s.result.title} ({s.result.items})" for s in sections if 0 < s.result.items < FEW_ITEMS]
    if few:
        yield f"Few items, so that only large differences can be seen: {', '.join(few)}."


def unseeing(sections: Sequence[Section]) -> Iterator[str]:
    """What reaches a benchmark's primary metric, or all but, without seeing; one sentence each."""
    for title, line, name in ((s.result.title, s.primary, name) for s in sections for name in s.primary.baselines):
        value = line.baselines[name]
        gain = (line.value - value) * (1 if line.higher_is_better else -1)
        if gain <= 2 * (0.0 if math.isnan(line.error) else line.error):
            how = f"{name}, {UNSEEING[name]}," if name in UNSEEING else f"the baseline {name}"
            yield (
                f"{title}: {how} reaches {words(line.metric)} {number(value)}, and seeing "
                f"{number(line.value)}: not clearly better."
            )


def _unreadable(sides: Sequence[tuple[Result, str]]) -> Iterator[str]:
    """A sentence for each reason why answers say nothing of the model."""
    found: dict[str, list[str]] = {}
    for result, name in sides:
        for key, value in result.notes.items():
            counts = list(value.values()) if isinstance(value, Mapping) else [value]
            number = sum(n for n in counts if isinstance(n, int))
            if key in UNREADABLE and number and number >= UNREADABLE_SHARE * result.items:
                found.setdefault(UNREADABLE[key], []).append(f"{result.title}{name}: {number:,} of {result.items:,}")
    yield from (f"Answers that {reason}: {'; '.join(counts)}." for reason, counts in found.items())


def _asked_differently(section: Section) -> Iterator[str]:
    """How two runs of a benchmark differ in more than the model."""
    if section.other is None:
        return
    title, both = section.result.title, (section.other, section.result)
    old, new = ({answer.id for answer in result.answers} for result in both)
    theirs, mine = (dict(settings.flat(result.facts)) for result in both)
    keys = [key for key in CONDITIONS if old == new or key not in OF_ITEMS]
    changed = [key for key in keys if mine.get(key) != theirs.get(key)]
    if changed:
        settings_text = "; ".join(f"{words(key)} {_cut(theirs.get(key))} and {_cut(mine.get(key))}" for key in changed)
        yield f"{title} was not asked alike in the two runs: {settings_text}."
    if old != new:
        shared = f"the runs share {len(old & new):,} items of {len(old):,} and {len(new):,}"
        yield f"{title}: {shared}; differences are over the shared ones where that is possible."


def _cut(value: str | None) -> str:
    """A setting for a sentence; hashes by their beginning."""
    return "not recorded" if value is None else value if len(value) <= 32 else f"{value[:10]}…"
