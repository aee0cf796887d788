"""From a telemetry file to a `Run`: event by event, whatever is missing at its end or wrong in between."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncflow.errors import NotTelemetryError, UnknownSessionError
from asyncflow.graph import State
from asyncflow.report.clocks import Clocks, correct
from asyncflow.report.files import Event, find_file, read_events
from asyncflow.report.run import Attempt, BackendShape, Failure, GpuSample, LoopBlock, Run, Sample, Session, Task
from asyncflow.telemetry import names

#: The state that each end means.
STATES = {
    names.TASK_COMPLETED: State.DONE,
    names.TASK_FAILED: State.FAILED,
    names.TASK_CANCELED: State.CANCELLED,
}


def read_run(path: Path, session: str | None = None) -> Run:
    """The session in a file, or in the newest file of a folder; by default the one that began last.

    Raises NotTelemetryError and UnknownSessionError.
    """
    file = find_file(path)
    with _no_collection():
        return _read(file, session)


def _read(file: Path, wanted: str | None) -> Run:
    reader: Reader | None = None
    sessions: dict[str, None] = {}
    unreadable = 0
    for event in read_events(file):
        if event is None:
            unreadable += 1
            continue
        uid = event["session_id"]
        # An engine may be given the same uid again; then the later session is meant.
        if event["event_type"] == names.SESSION_STARTED or uid not in sessions:
            sessions.pop(uid, None)
            sessions[uid] = None
            if wanted is None or uid == wanted:
                reader = Reader(uid, event["event_time"])
        if reader is not None and reader.session_id == uid:
            reader.take(event)
    if not sessions:
        raise NotTelemetryError(str(file), "its lines are no events of telemetry" if unreadable else "it is empty")
    if reader is None:
        raise UnknownSessionError(str(wanted), str(file), list(sessions))
    return reader.run(unreadable, tuple(sessions))


@contextmanager
def _no_collection() -> Iterator[None]:
    """All that is made here is kept: looking for garbage in it again and again takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# --- values that may be anything --------------------------------------------------------------------------------------


def _text(value: object) -> str | None:
    return value if type(value) is str and value else None


def _number(value: object, default: float = 0.0) -> float:
    return value if type(value) is float or type(value) is int else default


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def _texts(value: object) -> tuple[str, ...]:
    return tuple(each for each in value if type(each) is str) if type(value) is list else ()


def _objects(value: object) -> list[dict[str, Any]]:
    return [each for each in value if type(each) is dict] if type(value) is list else []


# --- events ----------------------------------------------------------------------------------------------------------


class Reader:
    """Takes the events of one session in the order of the file."""

    def __init__(self, session_id: str, began: float) -> None:
        self.session_id = session_id
        self._began = began
        self._session = Session(session_id, began)
        self._tasks: dict[str, Task] = {}
        self._samples: dict[str, list[Sample]] = {}
        self._loop_blocks: list[LoopBlock] = []
        self._own: Counter[str] = Counter()
        self._clocks = Clocks()
        self._last = 0.0
        self._of_tasks: Mapping[str, Callable[[Task, float, Event, dict[str, Any]], None]] = {
            names.TASK_CREATED: self._created,
            names.TASK_RESOLVED: self._resolved,
            names.TASK_SUBMITTED: self._submitted,
            names.TASK_QUEUED: self._queued,
            names.TASK_STARTED: self._started,
            names.TASK_RETRIED: self._retried,
            names.TASK_COMPLETED: self._ended,
            names.TASK_FAILED: self._ended,
            names.TASK_CANCELED: self._ended,
        }
        self._others: Mapping[str, Callable[[float, Event, dict[str, Any]], None]] = {
            names.SESSION_STARTED: self._session_started,
            names.RESOURCE_UPDATE: self._measured,
            names.LOOP_BLOCKED: self._loop_blocked,
            names.SESSION_ENDED: self._session_ended,
        }

    def take(self, event: Event) -> None:
        """The next event; one of another type is the user's own."""
        kind, attributes, time = event["event_type"], event["attributes"], event["event_time"]
        self._look_at_clocks(event, time)
        time -= self._began
        if (of_task := self._of_tasks.get(kind)) is not None:
            uid = event.get("task_id")
            if type(uid) is str:
                task = self._tasks.get(uid)
                if task is None:
                    # Unless it is its first line: what is known of it is better than nothing.
                    task = self._tasks[uid] = Task(uid, uid, created=time)
                    task.workflow = _text(attributes.get(names.WORKFLOW_ID))
                of_task(task, time, event, attributes)
        elif (other := self._others.get(kind)) is not None:
            other(time, event, attributes)
        else:
            self._own[kind] += 1

    def _look_at_clocks(self, event: Event, time: float) -> None:
        emitted, host = event.get("emit_time"), event.get("node_id")
        if type(emitted) is float or type(emitted) is int:
            if emitted - self._began > self._last:
                self._last = emitted - self._began
            if type(host) is str:
                self._clocks.written(host, time - emitted)
        elif host is None and time - self._began > self._last:
            self._last = time - self._began

    def run(self, unreadable: int, sessions: tuple[str, ...]) -> Run:
        """All that was taken, with times by the engine's clock."""
        skews = self._clocks.skews(self._session.host)
        correct(self._tasks.values(), self._samples, skews)
        return Run(
            self._session,
            self._tasks,
            self._last if self._session.ended is None else self._session.ended,
            self._samples,
            self._loop_blocks,
            self._own,
            skews,
            unreadable,
            sessions,
        )

    # --- of the session

    def _session_started(self, time: float, event: Event, attributes: dict[str, Any]) -> None:
        session = self._session
        session.host = _text(event.get("node_id"))
        session.version = _text(attributes.get(names.VERSION)) or ""
        session.python = _text(attributes.get(names.PYTHON)) or ""
        session.pid = _whole(attributes.get(names.PID))
        session.command = _texts(attributes.get(names.COMMAND_ARGS))
        session.backends = tuple(
            BackendShape(
                _text(each.get("name")) or "?",
                int(_number(each.get("workers"))),
                int(_number(each.get("cores"))),
                int(_number(each.get("gpus"))),
                int(_number(each.get("memory"))),
            )
            for each in _objects(attributes.get(names.BACKENDS))
        )

    def _session_ended(self, time: float, event: Event, attributes: dict[str, Any]) -> None:
        self._session.ended = max(0.0, time)
        self._session.dropped = int(_number(attributes.get(names.DROPPED)))

    def _measured(self, time: float, event: Event, attributes: dict[str, Any]) -> None:
        gpus = tuple(
            GpuSample(
                str(each.get("id")),
                _number(each.get("utilisation")),
                _number(each.get("memory_used")),
                _number(each.get("memory_total")),
            )
            for each in _objects(attributes.get("gpus"))
        )
        sample = Sample(
            time,
            _number(attributes.get("cpu_percent")),
            _number(attributes.get("memory_used")),
            _number(attributes.get("memory_total")),
            _number(attributes.get("disk_read")),
            _number(attributes.get("disk_written")),
            _number(attributes.get("net_received")),
            _number(attributes.get("net_sent")),
            gpus,
        )
        self._samples.setdefault(_text(event.get("node_id")) or "?", []).append(sample)

    def _loop_blocked(self, time: float, event: Event, attributes: dict[str, Any]) -> None:
        who, where = (_text(attributes.get(name)) or "?" for name in (names.WHO, names.WHERE))
        seconds = max(0.0, _number(attributes.get(names.SECONDS)))
        self._loop_blocks.append(LoopBlock(max(0.0, time), seconds, who, where))

    # --- of tasks

    def _created(self, task: Task, time: float, event: Event, attributes: dict[str, Any]) -> None:
        task.created = time
        task.name = _text(attributes.get(names.TASK_NAME)) or task.uid
        task.kind = _text(attributes.get(names.TASK_TYPE)) or "function"
        task.executable = _text(attributes.get(names.EXECUTABLE)) or ""
        # Each once: a file may say anything, and what follows counts edges.
        task.depends_on = tuple(dict.fromkeys(_texts(attributes.get(names.DEPENDS_ON))))
        task.workflow = _text(attributes.get(names.WORKFLOW_ID))
        task.parent = _text(attributes.get(names.PARENT))
        task.backend = _text(event.get("backend"))
        task.cores = max(0.0, _number(attributes.get(names.CORES), 1))
        task.gpus = max(0.0, _number(attributes.get(names.GPUS)))

    def _resolved(self, task: Task, time: float, event: Event, attributes: dict[str, Any]) -> None:
        if task.resolved is None:
            task.resolved = time

    def _submitted(self, task: Task, time: float, event: Event, attributes: dict[str, Any]) -> None:
        attempt = self._attempt(task, event, attributes)
        if attempt is not None:
            attempt.submitted = time

    def _queued(self, task: Task, time: float, event: Event, attributes: dict[str, Any]) -> None:
        """It tells nothing that handing over and start do not."""

    def _started(self, task: Task, time: float, event: Event, attributes: dict[str, Any]) -> None:
        attempt = self._attempt(task, event, attributes)
        if attempt is None:
            return
        attempt.started = time
        attempt.worker = _text(attributes.get(names.WORKER))
        attempt.host = _text(event.get("node_id"))
        task.state = State.RUNNING
        if attempt.host is not None and attempt.submitted is not None:
            self._clocks.began(attempt.host, time - attempt.submitted)

    def _retried(self, task: Task, time: float, event: Event, attributes: dict[str, Any]) -> None:
        task.state = State.PENDING
        attempt = self._attempt(task, event, attributes)
        if attempt is not None:
            attempt.failure = failure_of(event, attributes)
            _close(attempt, time, event)

    def _ended(self, task: Task, time: float, event: Event, attributes: dict[str, Any]) -> None:
        kind = event["event_type"]
        task.ended = time
        task.state = STATES[kind]
        task.failure = None if kind == names.TASK_COMPLETED else failure_of(event, attributes)
        attempt = self._attempt(task, event, attributes)
        # One that failed before may be all there is: a task can be cancelled while it waits to be tried again.
        if attempt is None or attempt.ended is not None:
            return
        attempt.failure = task.failure
        _close(attempt, time, event)

    def _attempt(self, task: Task, event: Event, attributes: dict[str, Any]) -> Attempt | None:
        """The one that an event is about, new where it was not told of; None where it is about none."""
        number = _whole(attributes.get(names.ATTEMPT)) or 0
        attempts = task.attempts
        if attempts and attempts[-1].number == number:
            return attempts[-1]
        if number < 1:
            return None
        for attempt in attempts:
            if attempt.number == number:
                return attempt
        attempt = Attempt(number, backend=_text(event.get("backend")))
        attempts.append(attempt)
        return attempt


def _close(attempt: Attempt, time: float, event: Event) -> None:
    """Its end. How long it took is known better now than when its start was told, which may have come in late."""
    attempt.ended = time
    lasted = _number(event.get("duration_seconds"), -1.0)
    if attempt.started is not None and lasted >= 0:
        attempt.started = time - lasted


def failure_of(event: Event, attributes: dict[str, Any]) -> Failure:
    """What an event says of what went wrong."""
    return Failure(
        _text(event.get("error_type")) or "",
        _text(attributes.get(names.EXCEPTION_MESSAGE)) or _text(attributes.get(names.REASON)) or "",
        _text(attributes.get(names.OUTCOME)) or "",
        _whole(attributes.get(names.EXIT_CODE)),
        _texts(attributes.get(names.COMMAND_ARGS)),
        _text(attributes.get(names.STDERR)) or "",
        _text(attributes.get(names.ROOT_CAUSE)),
        attributes.get(names.LOST) is True,
    )
