"""Progress as text: whole lines for a batch job's log, and one line that is written over for a bare terminal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import TextIO

from asyncflow.display.counts import Counts, fold

#: Seconds between two lines of a log, at first and at most; between these it is a part of the time gone by, so that
#: a short job is followed closely and a long one does not fill its log.
_FIRST = 5.0
_LAST = 60.0
_PART = 1 / 20
#: Task names in one line.
_NAMES = 8


def phrase(counts: Counts) -> str:
    """`simulate 340/1000 done, 8 running, 1 failed`."""
    words = [f"{counts.name} {counts.done}/{counts.calls}"]
    if counts.done:
        words[0] += " done"
    for number, state in ((counts.running, "running"), (counts.failed, "failed"), (counts.cancelled, "cancelled")):
        if number:
            words.append(f"{number} {state}")
    if not counts.ended and not counts.running:
        words[0] += " waiting"
    return ", ".join(words)


def line(counts: Sequence[Counts]) -> str:
    """All names in one line."""
    return "; ".join(phrase(each) for each in fold(counts, _NAMES)) or "no calls"


class LogView:
    """Lines with the time of day, each a while after the other and only where something changed."""

    #: Seconds between two looks.
    interval = 1.0

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._began = self._written = time.monotonic()
        self._last = ""

    def show(self, counts: Sequence[Counts]) -> None:
        now = time.monotonic()
        if now - self._written >= min(max(_FIRST, (now - self._began) * _PART), _LAST):
            self._write(counts)
            self._written = now

    def close(self, counts: Sequence[Counts]) -> None:
        self._write(counts)

    def _write(self, counts: Sequence[Counts]) -> None:
        text = line(counts)
        if text != self._last:
            self._file.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
            self._file.flush()
            self._last = text


class LineView:
    """One line at the bottom of a terminal, written over."""

    interval = 0.25

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def show(self, counts: Sequence[Counts]) -> None:
        width = shutil.get_terminal_size().columns - 1
        # To the start of the line, and clear what a longer one left.
        self._file.write(f"\r{line(counts)[:width]}\x1b[K")
        self._file.flush()

    def close(self, counts: Sequence[Counts]) -> None:
        self.show(counts)
        self._file.write("\n")
        self._file.flush()
