"""What the makespan was made of: from the task that ended last, step by step, back to what it had waited for. Pure.

Before a task that was held up by a dependency stands the one that ended last. Before one that was held up by nothing
but its call stands what had ended last when it was called, in the same block or outside of all: scripts call when
something has ended. A block is held up by what it called.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

from asyncflow.report.run import Run, Task
from asyncflow.report.spent import Activity, activities, seconds_of


class Step(Enum):
    """What a task of the chain did, or what was waited for before it; the value is what people read."""

    RUNNING = "running"
    BACKEND = "queued at the backend"
    ENGINE = "queued in the engine"
    RETRYING = "between attempts"
    #: From the end of the one before to the end of the last dependency: a future that is no task, or a late report.
    WAITING = "waiting for other futures"
    #: The script's own code, or a block's.
    UNCALLED = "until the next call"

    # Members are singletons; Enum's own hash goes through Python code.
    __hash__ = object.__hash__


_STEPS = {activity: Step[activity.name] for activity in Activity}


def chain(run: Run) -> list[Task]:
    """From the first to the last. O(tasks log tasks)."""
    if not run.tasks:
        return []
    ends = _Ends(run)
    seen: set[str] = set()
    found: list[Task] = []
    task: Task | None = max(run.tasks.values(), key=lambda each: (run.end_of(each), not each.is_block))
    while task is not None and task.uid not in seen:
        seen.add(task.uid)
        found.append(task)
        task = ends.part(task) or ends.before(task)
    return found[::-1]


class _Ends:
    """Which tasks had ended at which time, by the block that they were called in."""

    def __init__(self, run: Run) -> None:
        self._run = run
        ended: defaultdict[str | None, list[tuple[float, str]]] = defaultdict(list)
        for task in run.tasks.values():
            ended[task.parent].append((run.end_of(task), task.uid))
        for each in ended.values():
            each.sort()
        self._ended: Mapping[str | None, Sequence[tuple[float, str]]] = ended

    def _last(self, parent: str | None, until: float) -> Task | None:
        """What was called in `parent` and ended last until then."""
        ended = self._ended.get(parent, ())
        place = bisect_right(ended, until, key=lambda each: each[0])
        return self._run.tasks[ended[place - 1][1]] if place else None

    def part(self, task: Task) -> Task | None:
        """What a block called and ended last before it did."""
        return self._last(task.uid, self._run.end_of(task)) if task.is_block else None

    def before(self, task: Task) -> Task | None:
        """What held up the beginning of a task."""
        known = [self._run.tasks[uid] for uid in task.depends_on if uid in self._run.tasks]
        latest = max(known, key=self._run.end_of, default=None)
        if latest is not None and self._run.end_of(latest) > task.created:
            return latest
        earlier = self._last(task.parent, task.created)
        if earlier is not None or task.parent is None:
            return earlier
        # The first call of a block: what held up the block.
        block = self._run.tasks.get(task.parent)
        return None if block is None else self.before(block)


def steps(run: Run, tasks: Sequence[Task]) -> dict[Step, float]:
    """The seconds from the first call to the end of the last of `tasks`, each counted once."""
    return seconds_of(_boundaries(run, tasks), run.first)


def _boundaries(run: Run, tasks: Sequence[Task]) -> Iterator[tuple[Step, float]]:
    parents = {task.parent for task in tasks}
    for task in tasks:
        if task.uid in parents:  # what it called has been counted; the rest is its own
            yield Step.UNCALLED, run.end_of(task)
            continue
        yield Step.UNCALLED, task.created
        for activity, until in activities(run, task):
            yield _STEPS[activity], until
