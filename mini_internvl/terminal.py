"""What people see in a terminal: progress bars, tables. On a terminal a bar is drawn over; in a log it is a line now
and then.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mini_internvl.train.meter import Progress as TrainingProgress

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
LOG_SECONDS = 15.0  # time between two lines of a bar in a log
DRAW_SECONDS = 0.1  # time between two drawings of a bar on a terminal

_shown: Progress | None = None  # the bar on the terminal; there is one at a time


def close() -> None:
    """Leave the bar on the terminal as it stands and give the cursor back."""
    global _shown
    if _shown is not None:
        _shown.stop()
        _shown = None


def duration(seconds: float) -> str:
    """ "42 s", "3 min 05 s" or "1 h 12 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ProgressBar:
    """Shows a counted step: title, done of total, a note, time left.

    Without a note of its own, or with a ``unit`` whose pace is shown, the time left is estimated from what was done
    since the first call.
    """

    def __init__(self, title: str, *, unit: str = "") -> None:
        self.title, self.unit = title, unit
        self.bar: Progress | None = None
        self.began: float | None = None
        self.last = self.first = 0.0
        self.ended = False

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` are done; the call with ``done == total`` ends the bar. A total of 0 is not
        known yet: :func:`close` ends the bar then."""
        if self.ended:
            return
        self.ended, now = 0 < total <= done, time.monotonic()
        if self.began is None:
            self.began, self.first = now, done
        fresh, seconds = done - self.first, now - self.began
        notes = [note] if note else []
        if fresh and total and not self.ended and (self.unit or not note):
            notes.insert(0, f"{duration(seconds / fresh * (total - done))} left")
        if fresh and seconds and self.unit:
            notes.insert(0, f"{fresh / seconds:.1f} {self.unit}/s")
        note = "  ".join(notes)
        if not self.ended and now - self.last < (DRAW_SECONDS if err.is_terminal else LOG_SECONDS):
            return
        self.last = now
        if err.is_terminal:
            self._draw(done, total, note)
        else:
            counted = f"{done}/{total}" if total else f"{done}"
            err.print(f"  {self.title}  {counted}  {note}".rstrip(), markup=False, soft_wrap=True)

    def _draw(self, done: int, total: int, note: str) -> None:
        global _shown
        if self.bar is None or self.bar is not _shown:
            close()
            columns = (TextColumn("  {task.description}", markup=False), BarColumn(24), MofNCompleteColumn())
            note_column = TextColumn("{task.fields[note]}", markup=False)
            _shown = self.bar = Progress(*columns, note_column, console=err, auto_refresh=False)
            self.bar.add_task(self.title, total=total or None, note=note)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], completed=done, total=total or None, note=note, refresh=True)
        if self.ended:
            close()


class TrainingBar:
    """Shows training: a bar for each stage, and each measurement on a line of its own."""

    def __init__(self) -> None:
        self.bar: ProgressBar | None = None

    def __call__(self, progress: TrainingProgress) -> None:
        p = progress
        if self.bar is None or self.bar.title != p.stage:
            self.bar = ProgressBar(p.stage)
        left = f"  {duration(p.seconds_left)} left" if p.step < p.steps else ""
        self.bar(p.step, p.steps, f"loss {p.loss:.3f}  {p.tokens_per_s:,.0f} tokens/s{left}")
        if p.held_out:
            values = "  ".join(f"{name} {value:.3f}" for name, value in p.held_out.items())
            err.print(f"  {p.stage}  step {p.step}  held out: {values}", markup=False, soft_wrap=True)


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a plain table; all columns but the first are right-aligned."""
    out.print(title, style="bold", markup=False, soft_wrap=True)  # a Table would break it at its own width
    grid = Table()
    for i, header in enumerate(headers):
        grid.add_column(header, justify="left" if i == 0 else "right")
    for row in rows:
        grid.add_row(*map(Text, row))  # names from data may look like markup
    out.print(grid)
