"""What a session has done so far, counted as it goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from time import time

from asyncflow.component import Component
from asyncflow.graph import State
from asyncflow.telemetry.batch import Batch
from asyncflow.telemetry.record import Record


@dataclass
class NameSummary:
    """The ended components of one task name. Seconds."""

    done: int = 0
    failed: int = 0
    cancelled: int = 0
    #: How many attempts ran, and for how long in all.
    ran: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    #: From the hand-over to the start, in all.
    queued: float = 0.0

    @property
    def mean(self) -> float:
        """Of the attempts that ran."""
        return self.seconds / self.ran if self.ran else 0.0


@dataclass
class Summary:
    """A session up to now."""

    session_id: str
    #: Seconds since telemetry began.
    elapsed: float = 0.0
    #: By task name; those that come after a thousand others together as "other tasks".
    names: dict[str, NameSummary] = field(default_factory=dict)
    #: Ended components by workflow id; None is outside any.
    workflows: dict[str | None, int] = field(default_factory=dict)
    #: Attempts that another one followed.
    retried: int = 0
    #: Failures by exception class.
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def tasks(self) -> dict[str, int]:
        """Ended components by state."""
        counted = {
            State.DONE: sum(each.done for each in self.names.values()),
            State.FAILED: sum(each.failed for each in self.names.values()),
            State.CANCELLED: sum(each.cancelled for each in self.names.values()),
        }
        return {state.value: count for state, count in counted.items() if count}

    def __str__(self) -> str:
        states = ", ".join(f"{count} {state}" for state, count in self.tasks.items()) or "no task has ended"
        lines = [f"session {self.session_id}: {states} in {self.elapsed:.1f} s"]
        for name, each in sorted(self.names.items(), key=lambda item: -item[1].seconds):
            lines.append(
                f"  {name}: {each.done} done, {each.failed} failed, {each.cancelled} cancelled; "
                f"{each.seconds:.1f} s in all, {each.mean:.3g} s each, {each.longest:.3g} s at most"
            )
        return "\n".join(lines)


#: How many names, and workflows, are counted apart.
_APART = 1000


class Counting:
    """Counts batches."""

    def __init__(self, session_id: str) -> None:
        self._began = time()
        self._summary = Summary(session_id)
        self._lock = Lock()

    def take(self, batch: Batch) -> None:
        with self._lock:
            for past in batch.retried:
                self._summary.retried += 1
                _count_run(self._name(past.definition.name), past)
            for component in batch.ended:
                self._count_end(component)

    def _name(self, name: str) -> NameSummary:
        named = self._summary.names
        if name not in named and len(named) >= _APART:
            name = "other tasks"
        return named.setdefault(name, NameSummary())

    def _count_end(self, component: Component) -> None:
        summary, state = self._summary, component.state
        name = component.name
        each = summary.names.get(name) or self._name(name)
        _count_run(each, component)
        if state is State.DONE:
            each.done += 1
        elif state is State.FAILED:
            each.failed += 1
            error = type(component.error).__name__
            summary.errors[error] = summary.errors.get(error, 0) + 1
        else:
            each.cancelled += 1
        workflows = summary.workflows
        count = workflows.get(component.workflow_id)
        if count is not None or len(workflows) < _APART:
            workflows[component.workflow_id] = (count or 0) + 1

    def so_far(self) -> Summary:
        """A copy."""
        with self._lock:
            mine = self._summary
            return Summary(
                mine.session_id,
                time() - self._began,
                {name: NameSummary(**vars(each)) for name, each in mine.names.items()},
                dict(mine.workflows),
                mine.retried,
                dict(mine.errors),
            )


def _count_run(each: NameSummary, record: Record) -> None:
    """Count an attempt, if it ran."""
    started, ended, submitted = record.started, record.ended, record.submitted
    if started is None:
        return
    each.ran += 1
    if ended is not None and ended > started:
        seconds = ended - started
        each.seconds += seconds
        if seconds > each.longest:
            each.longest = seconds
    if submitted is not None and started > submitted:
        each.queued += started - submitted
