"""A run while it goes on: what stands in its file so far, counted. Costs O(1) for each line."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from asyncflow.display.counts import Counts
from asyncflow.graph import State
from asyncflow.report.failures import what
from asyncflow.report.files import Event
from asyncflow.report.reading import STATES, failure_of
from asyncflow.report.words import one_line, readable
from asyncflow.telemetry import names

#: Seconds over which the rate is a mean.
_RATE = 30


@dataclass
class _Unfinished:
    name: str
    workflow: str | None
    state: State = State.PENDING


class Followed:
    """The sessions of a file: of several the one that began last."""

    def __init__(self) -> None:
        #: None until the first event.
        self.live: Live | None = None

    def take(self, event: Event) -> str | None:
        """As `Live.take`."""
        live, uid = self.live, event["session_id"]
        if live is None or event["event_type"] == names.SESSION_STARTED:
            live = self.live = Live(uid, event["event_time"])
        return live.take(event) if uid == live.session_id else None


class Live:
    """What the events of one session say so far."""

    def __init__(self, session_id: str, began: float) -> None:
        self.session_id = session_id
        #: Seconds since the epoch, by the engine's clock: of the session's start and of the last line.
        self.began = self.last = began
        #: Of the engine.
        self.host: str | None = None
        self.pid: int | None = None
        #: Whether the session has ended.
        self.over = False
        self._unfinished: dict[str, _Unfinished] = {}
        self._calls: Counter[str] = Counter()
        self._states: Counter[tuple[str, State]] = Counter()
        self._workflows: Counter[str] = Counter()
        #: Seconds and how many tasks ended in each.
        self._ends: deque[list[int]] = deque()

    def take(self, event: Event) -> str | None:
        """The next event; a line about it where a task failed by itself."""
        kind, attributes, emitted = event["event_type"], event["attributes"], event.get("emit_time")
        self.last = max(self.last, emitted if isinstance(emitted, (int, float)) else event["event_time"])
        if kind == names.SESSION_STARTED:
            host, pid = event.get("node_id"), attributes.get(names.PID)
            self.host, self.pid = host if type(host) is str else None, pid if type(pid) is int else None
        elif kind == names.SESSION_ENDED:
            self.over = True
        elif type(uid := event.get("task_id")) is str:
            return self._task(uid, kind, event)
        return None

    def _task(self, uid: str, kind: str, event: Event) -> str | None:
        attributes = event["attributes"]
        if kind == names.TASK_CREATED:
            self._created(uid, attributes)
            return None
        task = self._unfinished.get(uid)
        if task is None:
            return None
        if kind == names.TASK_STARTED:
            self._move(task, State.RUNNING)
        elif kind == names.TASK_RETRIED:
            self._move(task, State.PENDING)
        elif (state := STATES.get(kind)) is not None:
            self._move(task, state)
            self._ended(uid, task)
            if state is State.FAILED:
                return _failure_line(uid, task.name, event, attributes)
        return None

    def _created(self, uid: str, attributes: dict[str, Any]) -> None:
        name, workflow = attributes.get(names.TASK_NAME), attributes.get(names.WORKFLOW_ID)
        task = _Unfinished(readable(name) if type(name) is str else uid, workflow if type(workflow) is str else None)
        self._unfinished[uid] = task
        self._calls[task.name] += 1
        self._states[task.name, task.state] += 1
        if task.workflow is not None:
            self._workflows[task.workflow] += 1

    def _move(self, task: _Unfinished, state: State) -> None:
        self._states[task.name, task.state] -= 1
        self._states[task.name, state] += 1
        task.state = state

    def _ended(self, uid: str, task: _Unfinished) -> None:
        del self._unfinished[uid]
        if task.workflow is not None:
            self._workflows[task.workflow] -= 1
            if not self._workflows[task.workflow]:
                del self._workflows[task.workflow]
        second = int(self.last)
        if not self._ends or self._ends[-1][0] != second:
            self._ends.append([second, 0])
        self._ends[-1][1] += 1
        while self._ends[0][0] < second - _RATE:
            self._ends.popleft()

    def counts(self) -> list[Counts]:
        """By task name, in the order in which the names came up."""
        return [
            Counts(
                name,
                calls,
                self._states[name, State.DONE],
                self._states[name, State.FAILED],
                self._states[name, State.CANCELLED],
                self._states[name, State.RUNNING],
            )
            for name, calls in self._calls.items()
        ]

    def rate(self, now: float) -> float:
        """Tasks that ended in a second, lately; `now` is the engine's clock."""
        since = now - _RATE
        span = min(_RATE, max(1.0, now - self.began))
        return sum(count for second, count in self._ends if second >= since) / span

    def running_workflows(self) -> list[str]:
        """Those of which something is unfinished, in the order in which they came up."""
        return list(self._workflows)


def _failure_line(uid: str, name: str, event: Event, attributes: dict[str, Any]) -> str | None:
    failure = failure_of(event, attributes)
    if failure.root_cause is not None and failure.result == names.SKIP:
        return None
    said = one_line(failure.message, 160)
    return f"{name} ({readable(uid)}) failed: {what(failure)}{f': {said}' if said else ''}"
