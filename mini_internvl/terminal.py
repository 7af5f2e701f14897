"""What people see in a terminal: progress lines, tables, errors. The only place besides cli.py that prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mini_internvl.train.loop import Progress

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def duration(seconds: float) -> str:
    """ "42 s", "3 min 05 s" or "1 h 12 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Line:
    """One line that is written over on a terminal, and written anew now and then in a log."""

    def __init__(self, every: float = 15.0) -> None:
        self.live = sys.stderr.isatty()
        self.every, self.last, self.open = every, 0.0, False

    def show(self, text: str, *, last: bool = False) -> None:
        """Show a state; ``last`` ends the line."""
        now = time.monotonic()
        if self.live:
            width = err.width - 1
            sys.stderr.write("\r" + text[:width].ljust(width) + ("\n" if last else ""))
            sys.stderr.flush()
            self.open = not last
        elif last or now - self.last >= self.every:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
            self.last = now

    def close(self) -> None:
        """End an open line."""
        if self.open:
            sys.stderr.write("\n")
            self.open = False


class Counter:
    """ "title  done/total  time left" for a counted step."""

    def __init__(self, title: str) -> None:
        self.title, self.line = title, Line()
        self.began: float | None = None
        self.first = 0
        self.ended = False

    def __call__(self, done: int, total: int) -> None:
        if self.ended:
            return
        self.ended = done >= total
        now = time.monotonic()
        if self.began is None:
            self.began, self.first = now, done
        fresh = done - self.first
        left = (now - self.began) / fresh * (total - done) if fresh else 0.0
        note = f"  {duration(left)} left" if fresh and done < total else ""
        self.line.show(f"  {self.title}  {done}/{total}{note}", last=done >= total)


def training_line(progress: Progress) -> str:
    """The live line of training: loss, tokens per second, time left."""
    p = progress
    return (
        f"  {p.stage}  step {p.step}/{p.steps}  loss {p.loss:.3f}  {p.tokens_per_s:,.0f} tokens/s  "
        f"{duration(p.seconds_left)} left"
    )


def measured_line(progress: Progress) -> str:
    """Held-out measurements of a step."""
    values = "  ".join(f"{name} {value:.3f}" for name, value in progress.held_out.items())
    return f"  {progress.stage}  step {progress.step}  held out: {values}"


class Training:
    """Shows training progress on one line, measurements on lines of their own."""

    def __init__(self) -> None:
        self.line = Line()

    def __call__(self, progress: Progress) -> None:
        self.line.show(training_line(progress), last=progress.step == progress.steps)
        if progress.held_out:
            self.line.close()
            err.print(measured_line(progress), markup=False, soft_wrap=True)


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table; all columns but the first are right-aligned."""
    out.print(title, style="bold", markup=False, soft_wrap=True)  # a Table would break it at its own width
    grid = Table()
    for i, header in enumerate(headers):
        grid.add_column(header, justify="left" if i == 0 else "right")
    for row in rows:
        grid.add_row(*map(Text, row))  # names from data may look like markup
    out.print(grid)
