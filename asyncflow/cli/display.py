"""Showing a replay while it goes on: a live table in a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from datetime import datetime
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from asyncflow.cli.tally import Tallies, Tally

#: How many names the live table shows at most.
ROWS = 20


class Display(Protocol):
    """Shows tallies, as often as every `interval` seconds."""

    interval: float

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, tallies: Tallies) -> None: ...


def display(console: Console) -> Display:
    """The display that suits where the console writes to."""
    return LiveTable(console) if console.is_terminal else Lines(console)


class LiveTable:
    """A table by task name that changes in its place, for a terminal."""

    interval = 0.1

    def __init__(self, console: Console) -> None:
        self._began = time.monotonic()
        # Drawn when there is something new: no thread of its own, which would take turns with the engine.
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, tallies: Tallies) -> None:
        """Draw the table anew."""
        self._live.update(progress_table(tallies, time.monotonic() - self._began), refresh=True)


def progress_table(tallies: Tallies, elapsed: float) -> Table:
    """The table at one moment, names that are not finished first."""
    table = Table(box=None, pad_edge=False)
    table.add_column("task", overflow="ellipsis", no_wrap=True)
    for column in ("done", "running", "failed", "total"):
        table.add_column(column, justify="right")
    names = sorted(tallies.by_name, key=lambda name: tallies.by_name[name].finished)
    for name in names[:ROWS]:
        table.add_row(*_row(escape(name), tallies.by_name[name]))
    if len(names) > ROWS:
        table.add_row(f"... {len(names) - ROWS} more")
    table.add_row(*_row(f"all, {elapsed:.1f} s", tallies.sum()), style="bold")
    return table


def _row(title: str, tally: Tally) -> list[str]:
    failed = f"[red]{tally.failed}[/red]" if tally.failed else "0"
    return [title, str(tally.done), str(tally.running), failed, str(tally.total)]


class Lines:
    """A line every few seconds, for a file, a pipe or the log of a batch job."""

    interval = 0.5

    #: Seconds between two lines.
    PAUSE = 5.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end: every line is complete."""

    def show(self, tallies: Tallies) -> None:
        """Write a line, unless the last one is too fresh."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.PAUSE
        line = f"{datetime.now().astimezone():%H:%M:%S}  {progress_line(tallies)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def progress_line(tallies: Tallies) -> str:
    """The state in one line: names that have begun and are not finished, and the sum."""
    whole = tallies.sum()
    parts = [f"{whole.done}/{whole.total} done, {whole.running} running, {whole.failed} failed"]
    parts += [f"{name} {tally.done}/{tally.total}" for name, tally in tallies.by_name.items() if tally.running]
    return "; ".join(parts)
