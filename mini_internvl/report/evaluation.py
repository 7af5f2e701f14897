"""The report of an evaluation: a folder of ``minivl eval`` -> one HTML file; with a second folder, how both differ.

Everything is inside the file: style, images and a short script that filters the examples. Without the script the page
is the same with every example listed. Only that script may run: the page's policy names its hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_internvl.report import examples, paired, settings, svg
from mini_internvl.report.eval_folder import Result, read_run
from mini_internvl.report.examples import Example
from mini_internvl.report.labels import Label
from mini_internvl.report.page import count, render, words, write
from mini_internvl.report.paired import Difference

SCRIPT = Path(__file__).parent / "templates" / "evaluation.js"
STATES = {
    paired.WRONG: "Wrong",
    paired.RIGHT: "Right",
    paired.GAINED: "Gained",
    paired.LOST: "Lost",
    paired.BOTH_WRONG: "Both wrong",
    paired.BOTH_RIGHT: "Both right",
    paired.UNJUDGED: "Without a mark",
}
"""Class of an example -> words of the filter."""
CONDITIONS = (
    *("split", "protocol", "prompt_sha256", "max_tiles", "max_new_tokens", "decoding", "seed", "data sha256"),
)
"""Settings that must be the same for two runs to be compared."""
OF_ITEMS = ("prompt_sha256", "seed", "data sha256")
"""Those of them that follow from which items were asked."""
OPEN = 3
"""With more benchmarks than this, their examples are folded."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric of a benchmark."""

    label: str
    """Its name within its group."""
    value: float
    """Of this run."""
    error: float
    """Standard error, NaN without one."""
    items: int | None
    """Items behind it."""
    higher_is_better: bool
    """Direction."""
    other: float = math.nan
    """Of the other run."""
    other_error: float = math.nan
    """Its standard error."""
    difference: Difference | None = None
    """This run minus the other."""
    image: str = ""
    """Its bars, as SVG."""

    @property
    def result(self) -> str:
        """ "better", "worse", "same", or empty where it cannot be said."""
        if self.difference is None or math.isnan(self.difference.value):
            return ""
        if abs(self.difference.value) < 1e-9:
            return "same"
        return "better" if (self.difference.value > 0) == self.higher_is_better else "worse"

    @property
    def sure(self) -> bool:
        """Whether the difference is larger than two of its standard errors."""
        return self.difference is not None and self.difference.clear


@dataclass(kw_only=True)
class Section:
    """One benchmark of the page."""

    result: Result
    """This run."""
    other: Result | None
    """The other run, where it has the benchmark."""
    anchor: str
    """Id of its heading."""
    primary_metric: Line
    """The metric that stands for it."""
    groups: Sequence[tuple[str, float, Sequence[Line]]]
    """(heading, end of its bars, metrics)."""
    marks: Sequence[tuple[str, str]]
    """(word, sentence) of what keeps the score from being compared with a published one."""
    examples: Sequence[Example]
    """Those that are shown."""
    states: Mapping[str, int]
    """Class -> how many of all items."""
    shared: Line | None
    """Share of right answers over the items of both runs."""
    problem: str = ""
    """Why there are no images."""

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """Key -> values of the categories of the examples, for the choice."""
        found: dict[str, list[str]] = {}
        for key, value in sorted(dict.fromkeys(label for example in self.examples for label in example.labels)):
            found.setdefault(key, []).append(value)
        return {key: values for key, values in found.items() if len(values) > 1}

    @property
    def codes(self) -> Mapping[Label, str]:
        """Category -> its name in the filter."""
        pairs = [(key, value) for key, values in self.labels.items() for value in values]
        return {pair: f"c{place}" for place, pair in enumerate(pairs)}

    @property
    def drawn(self) -> bool:
        """Whether an example has boxes."""
        return any(example.boxes for example in self.examples)


def build(run: str | Path, against: str | Path | None = None) -> Path:
    """Write ``report.html`` into the run folder, whole or not at all.

    Args:
        run: folder of an evaluation.
        against: another one, an earlier or simpler model; the page then shows how ``run`` differs from it.

    Returns:
        The path of the file.

    Raises:
        ValueError: a folder is no evaluation, a file is malformed (file and key or line named), the two have no
            benchmark in common, or jinja2 is missing.
    """
    run = Path(run)
    results = read_run(run)
    others = None if against is None else read_run(Path(against))
    partners = [_partner(result, others or ()) for result in results]
    if others is not None and not any(partners):
        known = [", ".join(sorted({r.benchmark for r in side})) for side in (results, others)]
        raise ValueError(f"{run} ({known[0]}) and {against} ({known[1]}) have no benchmark in common")
    most = max(4, min(examples.PER_BENCHMARK, examples.IN_ALL // len(results)))
    sections = [
        _section(result, other, place, most)
        for place, (result, other) in enumerate(zip(results, partners, strict=True))
    ]
    examples.draw_images([example for section in sections for example in section.examples])
    names = _names(run, results, Path(against), others) if against is not None and others else (_model(results), "")
    script = SCRIPT.read_text(encoding="utf-8")
    page = render(
        "evaluation.html",
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        run=run,
        against=against,
        names=names,
        sections=sections,
        compared=others is not None,
        verdict=verdict(sections, names) if others is not None else "",
        warnings=_warnings(sections, results, others),
        alone=_alone(results, partners, others),
        commands=settings.commands(results),
        common=settings.common(results),
        settings=[(s.anchor, s.result.title, settings.own(s.result, results)) for s in sections],
        state_words=STATES if others is None else {**STATES, paired.UNJUDGED: "Not compared"},
        unfolded=len(sections) <= OPEN,
    )
    return write(run / "report.html", page)


def verdict(sections: Sequence[Section], names: tuple[str, str]) -> str:
    """The comparison in one plain sentence."""
    lines = [section.primary_metric for section in sections if section.other]
    better, worse = ([line for line in lines if line.result == word] for word in ("better", "worse"))
    return (
        f"{names[0]} is better than {names[1]} on {len(better)} of {count(lines, 'benchmark')}{_surely(better)} "
        f"and worse on {len(worse)}{_surely(worse)}."
    )


def _surely(lines: Sequence[Line]) -> str:
    return f" ({sum(line.sure for line in lines)} by more than two standard errors)" if lines else ""


def _partner(result: Result, others: Sequence[Result]) -> Result | None:
    """The other run's result of the same benchmark, best with the same split and protocol."""
    same = [other for other in others if other.benchmark == result.benchmark]
    return max(
        same,
        key=lambda other: sum(other.text(key) == result.text(key) for key in ("split", "protocol")),
        default=None,
    )


def _section(result: Result, other: Result | None, place: int, most: int) -> Section:
    lines = {metric: _line(metric, result, other) for metric in result.values}
    shown = examples.choose(result, other, most)
    problem = examples.load(result, shown)
    theirs = {answer.id: answer for answer in other.answers} if other else {}
    states = Counter(
        paired.state(answer, theirs.get(answer.id), compared=other is not None) for answer in result.answers
    )
    empty = Line(label="", value=math.nan, error=math.nan, items=None, higher_is_better=True)
    return Section(
        result=result,
        other=other,
        anchor=f"benchmark-{place + 1}",
        primary_metric=lines.get(result.primary_metric, empty),
        groups=_groups(lines, result),
        marks=_marks(result),
        examples=shown,
        states=states,
        shared=_shared(result, other) if other else None,
        problem=problem,
    )


def _line(metric: str, result: Result, other: Result | None) -> Line:
    return Line(
        label=metric,
        value=result.values[metric],
        error=result.errors.get(metric, math.nan),
        items=result.counts.get(metric),
        higher_is_better=result.higher_is_better(metric),
        other=other.values.get(metric, math.nan) if other else math.nan,
        other_error=other.errors.get(metric, math.nan) if other else math.nan,
        difference=paired.difference(metric, result, other) if other else None,
    )


def _shared(result: Result, other: Result) -> Line | None:
    """Right answers in per cent over the items that both runs were asked and the benchmark gave marks for."""
    mine, theirs = paired.judged(result.answers), paired.judged(other.answers)
    both = [name for name in mine if name in theirs]
    if not both:
        return None
    return Line(
        label="answers right",
        value=100 * sum(mine[name] for name in both) / len(both),
        other=100 * sum(theirs[name] for name in both) / len(both),
        error=math.nan,
        items=len(both),
        higher_is_better=True,
        difference=paired.share(mine, theirs),
    )


def _groups(lines: Mapping[str, Line], result: Result) -> list[tuple[str, float, list[Line]]]:
    """Metrics by what stands before the first slash, those without one first; each with its bars."""
    groups: dict[str, list[tuple[str, Line]]] = {"": []}
    for metric, line in lines.items():
        group, slash, label = metric.partition("/")
        groups.setdefault(group if slash else "", []).append((label if slash else metric, line))
    found = []
    for name, members in groups.items():
        if not members or (len(groups) > 1 and [line.label for _, line in members] == [result.primary_metric]):
            continue  # the primary metric alone stands above the tables
        end = _bar_end([line for _, line in members], result)
        found.append((name, end, [_with_bars(line, label, end) for label, line in members]))
    return found


def _bar_end(lines: Sequence[Line], result: Result) -> float:
    """Where the bars of a group end: 100 for percentages, the primary metric's largest value, or what holds all."""
    values = [value for line in lines for value in (line.value, line.other) if math.isfinite(value)]
    if any(line.label == result.primary_metric for line in lines):
        values.append(result.most)
    most = max(values, default=0.0)
    return 100.0 if most <= 100 <= result.most else svg.round_end(most)


def _with_bars(line: Line, label: str, end: float) -> Line:
    bars = [("this", line.value, line.error)]
    if line.difference is not None:
        bars.insert(0, ("other", line.other, line.other_error))
    return Line(**{**vars(line), "label": label, "image": svg.error_bars(bars, end)})


def _marks(result: Result) -> list[tuple[str, str]]:
    found = []
    if result.text("partial"):
        found.append(("partial", result.text("partial")))
    notes = result.facts.get("notes")
    if isinstance(notes, Mapping) and notes.get("missing"):
        found.append(("answers missing", f"{notes['missing']} items have no answer and count as empty"))
    limit, of = result.facts.get("limit"), result.facts.get("of")
    if isinstance(of, int) and of > result.items:
        found.append(("subset", f"a sample of {result.items:,} of {of:,} items"))
    elif limit:
        found.append(("subset", f"at most {limit} items were asked, not the whole benchmark"))
    first = next(iter(getattr(result.module, "PROTOCOLS", {})), "")
    if first and result.text("protocol") not in ("", first):
        found.append(("other protocol", f"protocol {result.text('protocol')}; the paper's is {first}"))
    return found


def _model(results: Sequence[Result]) -> str:
    names = dict.fromkeys(settings.model_facts(result).get("name") or "" for result in results)
    return ", ".join(str(name) for name in names if name) or "unnamed model"


def _names(run: Path, results: Sequence[Result], against: Path, others: Sequence[Result]) -> tuple[str, str]:
    """What the two runs are called: by model, by folder where that is the same, by path where that is, too."""
    models = (_model(results), _model(others))
    short = tuple(name.rstrip("/").rsplit("/", 1)[-1] for name in models)
    for mine, theirs in (short, models, (run.resolve().name, against.resolve().name)):
        if mine != theirs:
            return mine, theirs
    return str(run), str(against)


def _warnings(sections: Sequence[Section], results: Sequence[Result], others: Sequence[Result] | None) -> list[str]:
    """What a reader must know before the metrics, one sentence each."""
    found = [f"{s.result.title}: {sentence.rstrip('.')}." for s in sections for _, sentence in s.marks]
    for section in sections:
        marks = _marks(section.other) if section.other else []
        found += [f"{section.result.title} in the other run: {sentence.rstrip('.')}." for _, sentence in marks]
    for whose, side in (("this run", results), ("the other run", others or ())):
        models = {
            str(settings.model_facts(result).get("sha256") or settings.model_facts(result).get("name"))
            for result in side
        }
        if len(models) > 1:
            found.append(f"The scores of {whose} come from {len(models)} different models.")
    for section in sections:
        if section.other is None:
            continue
        ids = [{answer.id for answer in result.answers} for result in (section.other, section.result)]
        mine, theirs = (dict(settings.flat(result.facts)) for result in (section.result, section.other))
        keys = [key for key in CONDITIONS if ids[0] == ids[1] or key not in OF_ITEMS]
        changed = [key for key in keys if mine.get(key) != theirs.get(key)]
        if changed:
            told = "; ".join(f"{words(k)} {_cut(theirs.get(k))} and {_cut(mine.get(k))}" for k in changed)
            found.append(f"{section.result.title} was not asked alike in the two runs: {told}.")
        if ids[0] != ids[1]:
            found.append(
                f"{section.result.title}: the runs share {len(ids[0] & ids[1]):,} items of {len(ids[0]):,} "
                f"and {len(ids[1]):,}; differences are over the shared ones where that is possible."
            )
    return found


def _cut(value: str | None) -> str:
    """A setting for a sentence; hashes by their beginning."""
    return "not recorded" if value is None else value if len(value) <= 32 else f"{value[:10]}…"


def _alone(results: Sequence[Result], partners: Sequence[Result | None], others: Sequence[Result] | None) -> list[str]:
    """Benchmarks of the other run that this one lacks."""
    used = [partner for partner in partners if partner]
    return [other.title for other in others or () if not any(other is partner for partner in used)]
