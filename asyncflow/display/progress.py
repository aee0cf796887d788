"""`flow.progress()`: counts on a timer of the loop, shown in the way that suits where the program runs."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from asyncflow.display.counts import Counts, count
from asyncflow.display.lines import LineView, LogView
from asyncflow.display.notebook import NotebookView, in_notebook

if TYPE_CHECKING:
    from asyncflow.scheduler import Scheduler

_log = logging.getLogger("asyncflow")

#: Which part of the loop's time counting and drawing may take: where they take long, they are done less often.
_SHARE = 0.02
#: Lines that a terminal must have for bars.
_LOWEST = 8


class View(Protocol):
    """One way of showing counts."""

    #: Seconds between two calls of `show`.
    interval: float

    def show(self, counts: Sequence[Counts]) -> None:
        """Bring what is seen up to date."""

    def close(self, counts: Sequence[Counts]) -> None:
        """Show the last state, and leave it there."""


def view_for(file: TextIO | None) -> View:
    """What suits `file`, by default stdout: a terminal, a notebook, or a log."""
    if file is None and in_notebook():
        return NotebookView()
    file = file or sys.stdout
    if not file.isatty() or os.environ.get("TERM") == "dumb":
        return LogView(file)
    # A terminal that does not tell its size says 0.
    if importlib.util.find_spec("rich") is None or os.get_terminal_size(file.fileno()).lines < _LOWEST:
        return LineView(file)
    from asyncflow.display.terminal import BarView

    return BarView(file)


class Progress:
    """Shows how far the calls of an engine are while its `with` lasts. Made by `flow.progress()`."""

    def __init__(self, scheduler: Scheduler, shown: dict[str, Counts], file: TextIO | None) -> None:
        """`shown` is what earlier displays of the same engine ended with, by name; this one adds to it."""
        self._scheduler = scheduler
        self._shown = shown
        self._earlier = dict(shown)
        self._file = file
        self._view: View | None = None
        self._timer: asyncio.TimerHandle | None = None

    def counts(self) -> list[Counts]:
        """By task name: the calls that had not ended when the last display closed, and those made since."""
        counts = (
            each.without_ended(self._earlier.get(each.name, each)) if each.name in self._earlier else each
            for each in count(self._scheduler)
        )
        return [each for each in counts if each.calls]

    def __enter__(self) -> Progress:
        self._loop = asyncio.get_running_loop()
        self._view = view_for(self._file)
        self._tick()
        return self

    def _tick(self) -> None:
        began = time.perf_counter()
        self._show()
        if self._view is not None:
            pause = max(self._view.interval, (time.perf_counter() - began) / _SHARE)
            self._timer = self._loop.call_later(pause, self._tick)

    def _show(self, last: bool = False) -> None:
        """A display that fails ends, and the run goes on."""
        view = self._view
        if view is None:
            return
        try:
            view.close(self.counts()) if last else view.show(self.counts())
        except Exception as error:
            self._view = None
            _log.warning("progress can no longer be shown: %s: %s", type(error).__name__, error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._show(last=True)
        self._view = None
        self._shown.update({each.name: each for each in count(self._scheduler)})

    async def __aenter__(self) -> Progress:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
