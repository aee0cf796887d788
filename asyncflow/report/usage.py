"""How much of what a run had it used: cores in use at each time, by backend. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from asyncflow.report.run import BLOCKS, Attempt, Run, Task


@dataclass(frozen=True)
class Steps:
    """A number that changes at times and stays the same between them."""

    #: Seconds, rising.
    times: tuple[float, ...]
    #: From the time with the same index on.
    values: tuple[float, ...]

    def area(self, end: float) -> float:
        """The sum of value times seconds until `end`, before which the last change lies."""
        spans = pairwise((*self.times, end))
        return sum(value * (until - since) for value, (since, until) in zip(self.values, spans, strict=True))

    def means(self, begin: float, end: float, count: int) -> list[float]:
        """The mean in each of `count` equal parts of the time."""
        width = (end - begin) / count
        sums = [0.0] * count
        if width <= 0:
            return sums
        for value, (since, until) in zip(self.values, pairwise((*self.times, end)), strict=True):
            # In parts, not seconds.
            left, right = (max(since, begin) - begin) / width, (min(until, end) - begin) / width
            place = int(left)
            while value and left < right and place < count:
                stop = min(right, place + 1.0)
                sums[place] += value * (stop - left)
                left, place = stop, place + 1
        return sums


@dataclass(frozen=True)
class Usage:
    """What one backend had and how much of it ran tasks."""

    backend: str
    #: What it began with; more where it grew.
    cores: int
    #: Held by what ran, at most `cores`: coroutines share one.
    busy: Steps
    #: Core seconds.
    used: float
    #: The most tasks that ran at once.
    peak: int
    #: Workers that ran anything.
    workers: int

    def share(self, seconds: float) -> float:
        """Which part of all cores was in use over that time, 0 to 1."""
        return min(1.0, self.used / (self.cores * seconds)) if self.cores and seconds > 0 else 0.0


#: A time, how many cores and how many tasks are more or less from then on.
_Change = tuple[float, float, int]


def usage(run: Run) -> list[Usage]:
    """By backend, in the session's order; blocks hold no cores and are left out."""
    ran: dict[str, list[tuple[Task, Attempt, float, float]]] = {
        each.name: [] for each in run.session.backends if each.name != BLOCKS
    }
    for each in run.attempts():
        backend = each[1].backend or each[0].backend or "?"
        if backend != BLOCKS:
            ran.setdefault(backend, []).append(each)
    said = {each.name: each.cores for each in run.session.backends}
    return [_usage(run, backend, said.get(backend, 0), attempts) for backend, attempts in ran.items()]


def _usage(run: Run, backend: str, said: int, attempts: Sequence[tuple[Task, Attempt, float, float]]) -> Usage:
    changes: list[_Change] = []
    workers: dict[tuple[str | None, str | None], list[tuple[float, float]]] = {}
    for task, attempt, started, ended in attempts:
        changes += [(started, task.cores, 1), (ended, -task.cores, -1)]
        workers.setdefault((attempt.host, attempt.worker), []).append((started, ended))
    cores = said
    # A worker is a core, and a cluster may have got more of them since; what is on the engine's host never grows.
    if not said or any(host != run.session.host for host, _ in workers):
        cores = max(said, _at_once(workers.values()))
    busy, peak = _busy(changes, cores, run.first)
    return Usage(backend, cores, busy, busy.area(run.end), peak, len(workers))


def _at_once(workers: Iterable[Sequence[tuple[float, float]]]) -> int:
    """How many workers were busy at the same time at most; one that runs several tasks at once counts as one."""
    changes: list[tuple[float, int]] = []
    for spans in workers:
        end = -1.0
        for started, ended in sorted(spans):
            if started >= end:
                changes += [(started, 1), (ended, -1)]
            elif ended > end:
                changes += [(end, 1), (ended, -1)]
            end = max(end, ended)
    return max(accumulate(change for _, change in sorted(changes)), default=0)


def _busy(changes: Iterable[_Change], cores: int, first: float) -> tuple[Steps, int]:
    """What ends and begins at the same time does not overlap, so ends come first."""
    ordered = sorted(changes, key=lambda change: (change[0], change[1]))
    held = accumulate(change[1] for change in ordered)
    times, values = [first], [0.0]
    for change, now in zip(ordered, held, strict=True):
        value = max(0.0, min(now, float(cores)))
        if change[0] == times[-1]:
            values[-1] = value
        elif value != values[-1]:
            times.append(change[0])
            values.append(value)
    return Steps(tuple(times), tuple(values)), max(accumulate(change[2] for change in ordered), default=0)


def busy_at_once(steps: Sequence[Steps], begin: float, end: float, count: int) -> list[float]:
    """The mean of their sum in each of `count` equal parts of the time."""
    parts = [each.means(begin, end, count) for each in steps]
    return [sum(values) for values in zip(*parts, strict=True)] if parts else [0.0] * count
