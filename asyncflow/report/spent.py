"""Where the time went: what each task did at which time, from its call to its end. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from asyncflow.graph import State
from asyncflow.report.run import Run, Task

K = TypeVar("K")


class Activity(Enum):
    """What a task does, in the order in which it comes to it; the value is what people read."""

    WAITING = "waiting for dependencies"
    #: From the end of the last dependency until it is handed to its backend.
    ENGINE = "queued in the engine"
    #: From there until its body begins.
    BACKEND = "queued at the backend"
    RUNNING = "running"
    #: From the end of an attempt that failed until the next is handed over.
    RETRYING = "between attempts"

    # Members are singletons; Enum's own hash goes through Python code.
    __hash__ = object.__hash__


def activities(run: Run, task: Task) -> Iterator[tuple[Activity, float]]:
    """What it did until when, in the order of time; what has not ended goes on until the run's end."""
    end = run.end if task.ended is None else task.ended
    resolved = task.resolved
    if resolved is None:
        handed_over = next((each.submitted for each in task.attempts if each.submitted is not None), None)
        resolved = end if handed_over is None else handed_over
    yield Activity.WAITING, resolved
    between = Activity.ENGINE
    for attempt in task.attempts:
        if attempt.submitted is not None:
            yield between, attempt.submitted
        between = Activity.RETRYING
        ended = end if attempt.ended is None else attempt.ended
        if attempt.started is None:
            yield Activity.BACKEND, ended
        else:
            yield Activity.BACKEND, attempt.started
            yield Activity.RUNNING, ended
    yield between, end


def spent(run: Run, task: Task) -> dict[Activity, float]:
    """Seconds for each activity; together those from its call to its end."""
    return seconds_of(activities(run, task), task.created)


def seconds_of(boundaries: Iterable[tuple[K, float]], begin: float) -> dict[K, float]:
    """How long each took of what follows one on the other from `begin` on; given are what, and until when."""
    seconds: dict[K, float] = defaultdict(float)
    now = begin
    for what, until in boundaries:
        if until > now:
            seconds[what] += until - now
            now = until
    return seconds


@dataclass
class Totals:
    """Tasks of one name, or all."""

    name: str
    calls: int = 0
    states: Counter[State] = field(default_factory=Counter)
    #: How often an attempt was followed by another.
    retries: int = 0
    #: Seconds of all of them together.
    seconds: dict[Activity, float] = field(default_factory=lambda: defaultdict(float))
    #: How many ran, and the longest of them.
    ran: int = 0
    longest: float = 0.0

    @property
    def all_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def mean(self) -> float:
        """Seconds that one of them ran, on average over those that did."""
        return self.seconds[Activity.RUNNING] / self.ran if self.ran else 0.0

    def add(self, task: Task, seconds: Mapping[Activity, float]) -> None:
        self.calls += 1
        self.states[task.state] += 1
        self.retries += max(0, len(task.attempts) - 1)
        for activity, each in seconds.items():
            self.seconds[activity] += each
        if task.started is not None:
            self.ran += 1
            self.longest = max(self.longest, seconds.get(Activity.RUNNING, 0.0))


def totals(run: Run) -> tuple[Totals, list[Totals]]:
    """Of all tasks but blocks, and by name, blocks included: what ran longest in all first.

    What a block takes is what its tasks take, so it is in no sum beside them.
    """
    everything = Totals("all tasks")
    by_name: dict[tuple[bool, str], Totals] = {}
    for task in run.tasks.values():
        seconds = spent(run, task)
        key = task.is_block, task.name
        if key not in by_name:
            by_name[key] = Totals(f"{task.name} (block)" if task.is_block else task.name)
        by_name[key].add(task, seconds)
        if not task.is_block:
            everything.add(task, seconds)
    return everything, sorted(by_name.values(), key=lambda each: -each.seconds[Activity.RUNNING])
