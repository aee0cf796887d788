"""What a session has done so far, counted as it goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from time import time

from asyncflow.component import Component
from asyncflow.graph import Phase, State
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
        alike: defaultdict[tuple[str, str | None, Phase], list[Component]] = defaultdict(list)
        for component in batch.ended:
            alike[component.binding.definition.name, component.workflow_id, component.phase].append(component)
        with self._lock:
            for past in batch.retried:
                self._summary.retried += 1
                self._count_runs(self._name(past.definition.name), [past])
            for (name, workflow_id, phase), components in alike.items():
                self._count_ends(self._name(name), phase, components)
                self._count_workflow(workflow_id, len(components))

    def _name(self, name: str) -> NameSummary:
        named = self._summary.names
        if name not in named and len(named) >= _APART:
            name = "other tasks"
        return named.setdefault(name, NameSummary())

    def _count_ends(self, each: NameSummary, phase: Phase, components: Sequence[Component]) -> None:
        self._count_runs(each, components)
        if phase is Phase.DONE:
            each.done += len(components)
        elif phase is Phase.CANCELLED:
            each.cancelled += len(components)
        else:
            each.failed += len(components)
            errors = self._summary.errors
            for component in components:
                error = type(component.error).__name__
                errors[error] = errors.get(error, 0) + 1

    @staticmethod
    def _count_runs(each: NameSummary, records: Iterable[Record]) -> None:
        """Count the attempts that ran."""
        ran = [record for record in records if record.started is not None]
        if ran:
            # No tuples: each would bring the garbage collector nearer.
            seconds = [max(0.0, (record.ended or 0.0) - (record.started or 0.0)) for record in ran]
            each.ran += len(ran)
            each.seconds += sum(seconds)
            each.longest = max(each.longest, *seconds)
            each.queued += sum(max(0.0, (record.started or 0.0) - (record.submitted or 0.0)) for record in ran)

    def _count_workflow(self, workflow_id: str | None, ends: int) -> None:
        workflows = self._summary.workflows
        if workflow_id in workflows or len(workflows) < _APART:
            workflows[workflow_id] = workflows.get(workflow_id, 0) + ends

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
