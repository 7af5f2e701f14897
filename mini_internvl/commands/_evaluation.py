"""The work of ``minivl eval``: one model on benchmarks; a folder of answers and scores, a table for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from mini_internvl import plugins, terminal
from mini_internvl import report as reports
from mini_internvl.commands._options import echo_json
from mini_internvl.engine.remote import Address, RemoteEngine, is_remote
from mini_internvl.evaluate import outputs
from mini_internvl.evaluate.cache import AnswerCache
from mini_internvl.evaluate.judge import Judge
from mini_internvl.evaluate.model import EvaluatedModel, load_evaluated, short_name
from mini_internvl.evaluate.questions import Questions, read_questions
from mini_internvl.evaluate.run import PredictCallbacks, predict
from mini_internvl.files import write_json
from mini_internvl.ranks import Ranks, ranks
from mini_internvl.records import Item, Prediction

CACHE = "answers.sqlite"
SYNTH = "synth"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of ``minivl eval``, whose help says what each means; ``minivl score`` uses some of them."""

    benchmarks: Sequence[str]
    model: str | None = None
    data: Path | None = None
    split: str | None = None
    protocol: str | None = None
    limit: int | None = None
    seed: int | None = None
    kinds: str = "shapes,words,charts"
    output: Path | None = None
    judge: str = ""
    name: str = ""
    max_tiles: int | None = None
    visual_tokens: str | None = None
    batch_size: int = 64
    heads: bool = True
    device: str = "auto"
    dtype: str = "auto"
    report: bool = True
    blind: bool = False
    think: bool = False
    flash: str | None = None

    @property
    def folder(self) -> Path:
        return self.output or Path("runs") / "eval" / (
            short_name(self.model) + "-blind" * self.blind + "-think" * self.think
        )


@dataclass(kw_only=True)
class Outcome:
    """What came of all benchmarks: contents of the score files, and by benchmark files for its server and errors."""

    results: list[dict[str, Any]] = field(default_factory=list)
    exported: dict[str, list[Path]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def find_benchmarks(settings: Settings) -> dict[str, ModuleType]:
    """Name -> benchmark, checked before a model is loaded; an unknown name is wrong usage, the nearest are offered.

    ValueError names what is known where a folder is missing, or a split, protocol or address could only fail later.
    """
    names = settings.benchmarks
    try:
        found = {plugins.short_name(name): plugins.find("benchmarks", name) for name in names}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if len(found) < len(set(names)):
        raise typer.BadParameter(f"two benchmarks share a name, and so a folder of results: {', '.join(names)}")
    for name, benchmark in found.items():
        if settings.data is None and name != SYNTH:
            raise ValueError(f"{name} reads its questions from a folder; give it with --data")
        choices = ("split", settings.split, benchmark.SPLITS), ("protocol", settings.protocol, benchmark.PROTOCOLS)
        for what, value, known in choices:
            if value is not None and value not in known:
                raise ValueError(f'{name} has no {what} "{value}"; there are: {", ".join(known)}')
    for address in (settings.judge, settings.model if is_remote(settings.model) else ""):
        if address:
            Address.read(address)
    return found


def run(settings: Settings, should_stop: Callable[[], bool], *, as_json: bool) -> int:
    """Evaluate; returns the exit code, 1 when anything failed."""
    benchmarks = find_benchmarks(settings)
    outcome = Outcome()
    with ranks() as mine, ExitStack() as ends:
        asked: list[Questions] = []
        for name, benchmark in benchmarks.items():  # all files are looked at before anything is asked
            with _report_errors(name, outcome, mine):
                asked.append(read(name, benchmark, settings))
        for failures in mine.exchange(outcome.failed):  # what one process cannot read, none asks
            outcome.failed = {**failures, **outcome.failed}
        asked = [questions for questions in asked if questions.name not in outcome.failed]
        model = ""
        if asked:
            names = ("device", "dtype", "heads", "flash", "visual_tokens")
            how: dict[str, Any] = {name: getattr(settings, name) for name in names}
            evaluated = load_evaluated(settings.model, **how, ranks=mine)
            evaluated = load_evaluated(settings.model, **how, ranks=mine)
            if settings.name:
                evaluated = replace(evaluated, name=settings.name, facts={**evaluated.facts, "name": settings.name})
            model = evaluated.name
            outputs.check_model(settings.folder, evaluated.facts, blind=settings.blind, think=settings.think)
            cache = ends.enter_context(AnswerCache(settings.folder / CACHE))
            for questions in asked:
                with _report_errors(questions.name, outcome, mine):
                    _evaluate(questions, settings, evaluated, cache, mine, outcome, should_stop)
        if mine.first:
            _finish(settings, model, outcome, as_json=as_json)
    return int(bool(outcome.failed))


@contextmanager
def _report_errors(name: str, outcome: Outcome, ranks: Ranks) -> Iterator[None]:
    """An error in one benchmark is printed and counted; the others go on."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        outcome.failed[name] = " ".join(str(error).split())
        _echo_error(ranks, f"{name}: {outcome.failed[name]}")


def _finish(settings: Settings, model: str, outcome: Outcome, *, as_json: bool) -> None:
    """Tables, then report and last lines."""
    if not as_json:
        for result in outcome.results:
            print_score(result, model)
        for name, paths in outcome.exported.items():
            typer.echo(f"{name}: references not published; files for the server: {', '.join(map(str, paths))}")
        if outcome.results or outcome.exported:
            typer.echo(f"answers and scores: {settings.folder}")
    report = ""
    if settings.report and outcome.results:
        try:
            report = str(reports.build(settings.folder))
        except (ValueError, OSError) as error:
            typer.echo(f"minivl: no report: {error}", err=True)
    if as_json:
        exported = {name: [str(path) for path in paths] for name, paths in outcome.exported.items()}
        content = {"output": str(settings.folder), "report": report, "results": outcome.results}
        echo_json({**content, "exported": exported, "failed": outcome.failed})
    elif report:
        typer.echo(f"report: {report}")


def _echo_error(ranks: Ranks, text: str) -> None:
    if ranks.first:
        typer.secho(f"minivl: {text}", err=True, fg="red" if terminal.err.is_terminal else None)


def read(name: str, benchmark: ModuleType, settings: Settings) -> Questions:
    """A benchmark's questions; ValueError where there are none, of which every score would be 0."""
    wanted = ("data", "split", "protocol", "limit", "seed", "kinds", "max_tiles")
    found = read_questions(name, benchmark, **{key: getattr(settings, key) for key in wanted})
    if not found.items:
        if name == SYNTH:
            raise ValueError(f'--kinds "{settings.kinds}" names no kind of image; give some, or all')
        raise ValueError(f"its split {found.split} in {settings.data} holds no questions; fetch its files again")
    found = found.blinded() if settings.blind else found
    return found.thinking() if settings.think else found


def _evaluate(
    asked: Questions,
    settings: Settings,
    evaluated: EvaluatedModel,
    cache: AnswerCache,
    ranks: Ranks,
    outcome: Outcome,
    should_stop: Callable[[], bool],
) -> None:
    """Ask one benchmark, write, score, write."""
    asked.check_kept(settings.folder)
    began, judge = time.monotonic(), make_judge(settings, cache)
    right = outputs.check(asked.benchmark, asked.protocol) if asked.scored else None
    progress = Asking(asked.name, right, quiet=not ranks.first)
    try:
        predictions = predict(
            evaluated.engine,
            asked.items,
            batch_size=settings.batch_size,
            cache=cache,
            model=evaluated.key,
            callbacks=PredictCallbacks(count=progress.count, answered=progress.answered, should_stop=should_stop),
            ranks=ranks,
        )
    finally:
        terminal.close()
    if not ranks.first:
        return
    asking = time.monotonic() - began
    result = asked.result(predictions, evaluated.facts, judge) if asked.scored else None
    folder = asked.write(settings.folder, predictions, result)
    if result is None:
        outcome.exported[asked.name] = asked.benchmark.export(asked.items, predictions, folder)
    else:
        outcome.results.append(result)
        if judge and judge.failed:
            outcome.failed[asked.name] = result["partial"]
            _echo_error(ranks, f"{asked.name}: {result['partial']}")
    finished = {"split": asked.split, "protocol": asked.protocol_name, "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
    timing = progress.timing(asking, predictions) | finished
    if judge:
        timing["judge"] = {"asked": judge.asked, "cached": judge.cached, "failed": judge.failed}
    write_json(folder / outputs.TIMING, timing)


def make_judge(settings: Settings, cache: AnswerCache | None) -> Judge | None:
    return Judge(RemoteEngine(Address.read(settings.judge)), cache) if settings.judge else None


class Asking:
    """One live line: answered items, pace, time left, share of right answers so far."""

    def __init__(self, name: str, right: Callable[[Item, str], bool] | None, *, quiet: bool) -> None:
        self.right_of, self.quiet = right, quiet
        self.bar = terminal.ProgressBar(name, unit="items")
        self.right = self.seen = self.cached = 0

    def answered(self, item: Item, text: str) -> None:
        self.seen += 1
        if self.right_of and not self.quiet:
            self.right += bool(self.right_of(item, text))

    def count(self, done: int, total: int) -> None:
        """Show the line; the first call comes with the answers that the cache held."""
        if self.bar.began is None:
            self.cached = done
        if not self.quiet:
            self.bar(done, total, f"right {100 * self.right / self.seen:.1f} %" if self.right_of and self.seen else "")

    def timing(self, seconds: float, predictions: Sequence[Prediction]) -> dict[str, Any]:
        asked = self.seen - self.cached
        return {
            "asked": asked,
            "cached": self.cached,
            "seconds": round(seconds, 2),
            "items_per_s": round(asked / seconds, 3) if seconds else 0.0,
            "answer_seconds": round(sum(prediction.seconds for prediction in predictions), 2),
        }


def print_score(result: dict[str, Any], model: str) -> None:
    """One table: the primary metric, then the others, each group where its first stands; a part of a score says so."""
    values = {result["primary_metric"]: result["values"].get(result["primary_metric"]), **result["values"]}
    groups = [name.partition("/")[0] for name in values]
    grouped = sorted(values.items(), key=lambda pair: groups.index(pair[0].partition("/")[0]))
    rows = [
        (
            name,
            "-" if value is None else f"{value:.2f}",
            f"{result['errors'][name]:.2f}" if name in result["errors"] else "",
            str(result["counts"].get(name, result["items"])),
        )
        for name, value in grouped
    ]
    sampled = f"{result['items']} of {result['of']} items" if result["items"] < result["of"] else ""
    size = sampled or f"{result['items']} items"
    mark = "  [PARTIAL]" if result["partial"] else ""
    mark += "  [BLIND: grey in place of each image]" if result.get("blind") else ""
    mark += "  [after thinking aloud]" if result.get("think") else ""
    title = f"{result['title']}, {result['split']}, protocol {result['protocol']}: {model}, {size}{mark}"
    terminal.table(title, ("", "score", "± s.e.", "items"), rows)
    if result["partial"]:
        typer.echo(f"PARTIAL: {result['partial']}")
    if sampled:
        typer.echo(f"A random sample (seed {result['seed']}); not to be compared with published scores.")
    typer.echo()
