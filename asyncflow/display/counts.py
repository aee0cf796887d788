"""How many calls there are by task name, and in which state: what every display of progress shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asyncflow.graph import State

if TYPE_CHECKING:
    from asyncflow.scheduler import Scheduler


@dataclass(frozen=True)
class Counts:
    """The calls of one task name."""

    name: str
    calls: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    running: int = 0

    @property
    def ended(self) -> int:
        return self.done + self.failed + self.cancelled

    @property
    def pending(self) -> int:
        return self.calls - self.ended - self.running

    @property
    def finished(self) -> bool:
        return self.ended == self.calls

    def by_state(self) -> dict[State, int]:
        """In the order of a bar, from the left; states that no call is in are left out."""
        counts = {
            State.DONE: self.done,
            State.FAILED: self.failed,
            State.CANCELLED: self.cancelled,
            State.RUNNING: self.running,
            State.PENDING: self.pending,
        }
        return {state: count for state, count in counts.items() if count}

    def without_ended(self, earlier: Counts) -> Counts:
        """These without the calls that had ended `earlier`."""
        return Counts(
            self.name,
            self.calls - earlier.ended,
            self.done - earlier.done,
            self.failed - earlier.failed,
            self.cancelled - earlier.cancelled,
            self.running,
        )


def count(scheduler: Scheduler) -> list[Counts]:
    """All that the engine has counted so far, in the order in which the names came up."""
    running = scheduler.running()
    return [
        Counts(
            name,
            tally.calls,
            tally.done,
            tally.failed,
            tally.cancelled,
            # Workers go on meanwhile: what has ended since it was seen running is not counted twice.
            max(0, min(running[tally], tally.calls - tally.done - tally.failed - tally.cancelled)),
        )
        for name, tally in list(scheduler.tallies.items())
        if tally.calls
    ]


def total(name: str, counts: Iterable[Counts]) -> Counts:
    """The sum of several names."""
    counts = list(counts)
    return Counts(
        name,
        sum(each.calls for each in counts),
        sum(each.done for each in counts),
        sum(each.failed for each in counts),
        sum(each.cancelled for each in counts),
        sum(each.running for each in counts),
    )


def fold(counts: Sequence[Counts], rows: int) -> list[Counts]:
    """At most `rows` rows: those that are not finished come first, the others are summed up in the last."""
    if len(counts) <= rows:
        return list(counts)
    chosen = sorted(counts, key=lambda each: each.finished)
    shown, others = chosen[: rows - 1], chosen[rows - 1 :]
    return [*shown, total(f"{len(others)} other tasks", others)]


def segments(counts: Counts, width: int) -> dict[State, int]:
    """A bar of `width` cells: how many belong to each state. Whatever there is of a state has one at least.

    So the bar is full of ended states only where all has ended.
    """
    states = counts.by_state()
    free = max(0, width - len(states))
    cells = {state: 1 + number * free // counts.calls for state, number in states.items()}
    if cells:  # what rounding left over is the widest one's
        cells[max(cells, key=cells.__getitem__)] += max(0, width - sum(cells.values()))
    return cells
