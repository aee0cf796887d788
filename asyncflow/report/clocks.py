"""The clocks of hosts, told from each other by what cannot be: work that ends after its end was written down.

A host's clock is ahead of the engine's by at most (start of an attempt - when it was handed over), for it began later,
and by at least (any time of the host's - when that was written), for it was written later. Where 0 lies between, the
clocks are taken to agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

from asyncflow.report.run import Attempt, Sample, Task

#: Seconds that clocks of one site may differ by without its being worth a word; times are corrected all the same.
NOTICEABLE = 0.05


class Clocks:
    """What is known of how far the clock of each host is ahead of the engine's."""

    def __init__(self) -> None:
        self._least: dict[str, float] = {}
        self._most: dict[str, float] = {}

    def written(self, host: str, ahead: float) -> None:
        """A time of `host`'s lies `ahead` of the time at which the engine wrote it."""
        if ahead > self._least.get(host, -inf):
            self._least[host] = ahead

    def began(self, host: str, after: float) -> None:
        """Work began on `host` that long `after` it was handed over."""
        if after < self._most.get(host, inf):
            self._most[host] = after

    def skews(self, home: str | None) -> dict[str, float]:
        """By how many seconds each host is ahead; hosts that agree with the engine's, which is `home`, are left out."""
        skews = {}
        for host in self._least.keys() | self._most.keys():
            least, most = self._least.get(host, -inf), self._most.get(host, inf)
            # A clock that was set meanwhile contradicts itself: the middle is wrong by least.
            skew = (least + most) / 2 if least > most else min(max(0.0, least), most)
            if skew and host != home:
                skews[host] = skew
        return dict(sorted(skews.items()))


def correct(tasks: Iterable[Task], samples: Mapping[str, list[Sample]], skews: Mapping[str, float]) -> None:
    """Turn all times into the engine's, and let none lie before what it follows."""
    for task in tasks:
        for attempt in task.attempts:
            skew = skews.get(attempt.host or "")
            if skew:
                attempt.started = None if attempt.started is None else attempt.started - skew
                attempt.ended = None if attempt.ended is None else attempt.ended - skew
        _in_order(task)
    for host, skew in skews.items():
        for sample in samples.get(host, ()):
            sample.time -= skew


def _in_order(task: Task) -> None:
    time = task.created = max(0.0, task.created)
    if task.resolved is not None:
        time = task.resolved = max(time, task.resolved)
    for attempt in task.attempts:
        time = _attempt_in_order(attempt, time)
    if task.ended is not None:
        # An attempt's end is the task's, by a clock that may be another.
        task.ended = time if task.attempts and task.attempts[-1].ended is not None else max(time, task.ended)


def _attempt_in_order(attempt: Attempt, time: float) -> float:
    if attempt.submitted is not None:
        time = attempt.submitted = max(time, attempt.submitted)
    if attempt.started is not None:
        time = attempt.started = max(time, attempt.started)
    if attempt.ended is not None:
        time = attempt.ended = max(time, attempt.ended)
    return time
