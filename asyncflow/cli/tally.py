"""Counting what became of many calls, without a callback on each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from asyncflow.future import TaskFuture
from asyncflow.graph import State


@dataclass(slots=True)
class Tally:
    """How many calls of one name are in which state; the others wait."""

    total: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def finished(self) -> bool:
        """Whether every call has ended."""
        return self.done + self.failed + self.cancelled == self.total

    def add(self, other: Tally) -> None:
        """Count the calls of `other` too."""
        self.total += other.total
        self.running += other.running
        self.done += other.done
        self.failed += other.failed
        self.cancelled += other.cancelled


class Tallies:
    """The states of calls by task name, as of the last `look`."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tally] = {}
        #: What the first call that failed raised.
        self.error: BaseException | None = None
        #: Seconds that the last look took: how often one may look follows from that.
        self.cost = 0.0
        self._unfinished: list[TaskFuture[Any]] = []

    def add(self, future: TaskFuture[Any]) -> None:
        """Count this call from now on."""
        self._unfinished.append(future)
        self.by_name.setdefault(future.name, Tally()).total += 1

    def look(self) -> None:
        """Count anew; costs as much as there are unfinished calls."""
        began = time.perf_counter()
        for tally in self.by_name.values():
            tally.running = 0
        self._unfinished = [future for future in self._unfinished if not self._has_ended(future)]
        self.cost = time.perf_counter() - began

    def _has_ended(self, future: TaskFuture[Any]) -> bool:
        tally = self.by_name[future.name]
        if not future.done():
            tally.running += future.state is State.RUNNING
            return False
        if future.cancelled():
            tally.cancelled += 1
        elif (error := future.exception()) is None:
            tally.done += 1
        else:
            tally.failed += 1
            self.error = self.error or error
        return True

    def sum(self) -> Tally:
        """All names together."""
        whole = Tally()
        for tally in self.by_name.values():
            whole.add(tally)
        return whole
