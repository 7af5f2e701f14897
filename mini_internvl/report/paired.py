"""Two runs of one benchmark, item by item: what was gained and lost, and how sure a difference is.

The standard error of a difference is paired where a metric is the mean of right answers over items that their labels
select: this is tried, and taken only if it gives the metric that the score says. Any other metric has
the error of two independent runs, which is as a rule too large, and is marked.

A difference is clear at the 5 % level: McNemar's test with continuity correction on gained and lost items where it is
paired, else more than two standard errors on at least FEWEST items. Without a standard error nothing is clear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mini_internvl.benchmarks._tally import mean_error
from mini_internvl.report.folders import FEWEST, ReportAnswer, Result
from mini_internvl.report.labels import plain, split

STATES = {
    **{"wrong": "Wrong", "right": "Right", "gained": "Gained", "lost": "Lost"},
    **{"missed": "Both wrong", "kept": "Both right", "unjudged": "Without a mark"},
}
"""Class of an example -> words of the filter."""
PLAIN = ("accuracy", "acc", "overall")  # parts of a metric's name that say only how it is counted


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of this run minus that of the other, with its standard error; NaN where one is not known.

    It is paired where both come from the same items, and clear where chance is an unlikely cause.
    """

    value: float
    error: float
    paired: bool
    clear: bool


def state(this: ReportAnswer, other: ReportAnswer | None, *, compared: bool) -> str:
    """The class of an example."""
    if not compared:
        return {True: "right", False: "wrong", None: "unjudged"}[this.right]
    if other is None or this.right is None or other.right is None:
        return "unjudged"
    if this.right:
        return "kept" if other.right else "gained"
    return "lost" if other.right else "missed"


def difference(metric: str, this: Result, other: Result) -> Difference:
    """How a metric differs, paired where that can be known."""
    value = this.values.get(metric, math.nan) - other.values.get(metric, math.nan)
    mine, theirs = _members(metric, this), _members(metric, other)
    for scale in dict.fromkeys((100.0, this.largest, float(len(mine)))):
        alike = mine.keys() == theirs.keys()
        if scale == len(mine) and not alike:
            continue
        if _gives(metric, this, mine, scale) and _gives(metric, other, theirs, scale):
            paired = share(mine, theirs, scale)
            return replace(paired, value=value) if alike else paired
    error = math.hypot(this.error(metric), other.error(metric))
    enough = min(this.count(metric), other.count(metric)) >= FEWEST
    return Difference(value=value, error=error, paired=False, clear=enough and abs(value) > 2 * error)


def share(this: Mapping[str, bool], other: Mapping[str, bool], scale: float = 100.0) -> Difference:
    """The difference of the shares of right answers over the items that both have."""
    steps = [float(right) - float(other[name]) for name, right in this.items() if name in other]
    gained, lost = steps.count(1.0), steps.count(-1.0)
    return Difference(
        value=scale * math.fsum(steps) / len(steps) if steps else math.nan,
        error=scale * mean_error(steps) if len(set(steps)) > 1 or len(steps) >= FEWEST else math.nan,
        paired=True,
        clear=abs(gained - lost) - 1 > 1.96 * math.sqrt(gained + lost),
    )


def _members(metric: str, result: Result) -> dict[str, bool]:
    """Whether the items behind a metric are right, by its name: those with every label it names, or all."""
    known = {name: {plain(value) for _, value in pairs} for name, pairs in result.labels.items()}
    every = set().union(*known.values())
    keys = {plain(key) for pairs in result.labels.values() for key, _ in pairs}
    whole = split(metric, 1)
    parts = whole if whole[-1] in every else split(metric)
    named = [part for part in parts if part in every]
    rest = [part for part in parts if part not in every and part not in keys and part not in PLAIN]
    if named and rest:
        return {}
    chosen = [answer for answer in result.answers if known[answer.id].issuperset(named)]
    return {answer.id: answer.right for answer in chosen if answer.right is not None}


def _gives(metric: str, result: Result, members: Mapping[str, bool], scale: float) -> bool:
    """Whether the mean of these marks is the metric that the score says."""
    if not members or result.counts.get(metric, len(members)) != len(members):
        return False
    mean = scale * sum(members.values()) / len(members)
    return abs(mean - result.values.get(metric, math.nan)) <= 1e-6 * scale
