"""Progress in a terminal: a bar for each task name in its last lines, drawn by rich.

The lines above are made the region that scrolls, so that whatever anybody prints, worker processes too, goes on there
as if the bars were not: nobody has to be asked to print through this.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncflow.display.counts import Counts, fold, segments
from asyncflow.graph import State

_STYLES = {
    State.DONE: "green",
    State.FAILED: "red",
    State.CANCELLED: "yellow",
    State.RUNNING: "blue",
    State.PENDING: "bright_black",
}
#: What a bar is made of where the terminal has neither colours nor more than ASCII.
_PLAIN = {State.DONE: "#", State.FAILED: "!", State.CANCELLED: "x", State.RUNNING: ">", State.PENDING: "."}
#: What a terminal is told: remember the cursor's place, go back there, clear below it, scroll everywhere.
_SAVE, _RESTORE, _CLEAR_BELOW, _CLEAR_RIGHT, _SCROLL_ALL = "\x1b7", "\x1b8", "\x1b[J", "\x1b[K", "\x1b[r"


class BarView:
    """Bars below what the program prints, which goes on above them."""

    interval = 0.2

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._began = time.monotonic()
        #: What stands below the bars; by default the time since they were first there.
        self.footer: Callable[[], str] | None = None
        #: The terminal's size when lines were last reserved, and how many of them.
        self._size = os.terminal_size((0, 0))
        self._reserved = 0

    def show(self, counts: Sequence[Counts]) -> None:
        size = os.get_terminal_size(self._file.fileno())
        lines = self._drawn(counts, size)
        first = size.lines - len(lines) + 1
        places = "".join(f"\x1b[{first + row};1H{line}{_CLEAR_RIGHT}" for row, line in enumerate(lines))
        self._write(f"{self._reserve(len(lines), size)}{_SAVE}{places}{_RESTORE}")

    def close(self, counts: Sequence[Counts]) -> None:
        lines = self._drawn(counts, os.get_terminal_size(self._file.fileno()))
        self._write("".join([self._free(), *(f"{line}\n" for line in lines)]))

    def _write(self, text: str) -> None:
        """At one go: what others write comes before or after, and never between the cursor's leaving and return."""
        self._file.write(text)
        self._file.flush()

    def _reserve(self, lines: int, size: os.terminal_size) -> str:
        """Take the last `lines` of the screen out of the region that scrolls."""
        if (lines, size) == (self._reserved, self._size):
            return ""
        freed = self._free()
        self._reserved, self._size = lines, size
        # The cursor may stand in one of them: that many new lines push it out of there, with all above it.
        pushed = "\n" * lines + f"\x1b[{lines}A"
        return f"{freed}{pushed}{_SAVE}\x1b[1;{size.lines - lines}r{_RESTORE}"

    def _free(self) -> str:
        """Let everything scroll again, and clear the bars."""
        return f"{_SAVE}{_SCROLL_ALL}{_RESTORE}{_CLEAR_BELOW}" if self._reserved else ""

    def _drawn(self, counts: Sequence[Counts], size: os.terminal_size) -> list[str]:
        grid = Table.grid(padding=(0, 1))
        for column in ("name", "bar", "ended", "states"):
            grid.add_column(column, no_wrap=True, justify="right" if column == "ended" else "left")
        console = self._console(size)
        width = max(10, min(40, size.columns // 3))
        for each in fold(counts, max(1, size.lines // 2)):
            grid.add_row(Text(each.name), _bar(each, width, console), f"{each.ended}/{each.calls}", _states(each))
        if counts and self.footer is None:
            grid.add_row("", "", "", Text(_clock(time.monotonic() - self._began), "bright_black"))
        with console.capture() as captured:
            console.print(grid)
            if self.footer is not None:
                console.print(Text(self.footer(), "bright_black"), no_wrap=True, overflow="ellipsis")
        return [line.rstrip() for line in captured.get().splitlines()]

    def _console(self, size: os.terminal_size) -> Console:
        # One column is left free: a terminal may go to the next line after the last.
        return Console(file=self._file, width=max(20, size.columns - 1), height=size.lines)


def _bar(counts: Counts, width: int, console: Console) -> Text:
    bare = console.color_system is None or not console.encoding.startswith("utf")
    cells = segments(counts, width).items()
    return Text.assemble(*((_PLAIN[state] * n if bare else "━" * n, _STYLES[state]) for state, n in cells))


def _states(counts: Counts) -> Text:
    shown = {state: n for state, n in counts.by_state().items() if state is not State.DONE}
    return Text(", ").join(Text(f"{n} {str(state).lower()}", _STYLES[state]) for state, n in shown.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
