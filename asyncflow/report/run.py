"""A run as its file tells it. Pure; `reading` fills it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from asyncflow.graph import State

#: The backend that blocks run on: the engine's loop, which holds no core.
BLOCKS = "blocks"


@dataclass(slots=True)
class Failure:
    """Why an attempt, or a task that had none, did not end well."""

    #: The exception's class; empty where none is told.
    type: str = ""
    message: str = ""
    #: A word of OpenTelemetry's conventions: failure, error, timeout, skip, cancellation.
    result: str = ""
    exit_code: int | None = None
    command: tuple[str, ...] = ()
    #: The last lines of it.
    stderr: str = ""
    #: uid of the task whose failure this one follows from.
    root_cause: str | None = None
    #: Whether the worker was lost, through no fault of the task's.
    lost: bool = False


@dataclass(slots=True)
class Attempt:
    """One execution of a task. Times are seconds since the session began, by the engine's clock."""

    number: int
    submitted: float | None = None
    started: float | None = None
    #: None while it runs, or where the file ends before it.
    ended: float | None = None
    backend: str | None = None
    worker: str | None = None
    host: str | None = None
    #: None where it ended well.
    failure: Failure | None = None


@dataclass(slots=True)
class Task:
    """A call of a task or block. Times as in `Attempt`."""

    uid: str
    name: str
    #: function, executable or block.
    kind: str = "function"
    #: Module and qualified name of the function.
    executable: str = ""
    #: uids, in the order met.
    depends_on: tuple[str, ...] = ()
    workflow: str | None = None
    #: uid of the block that it was called in.
    parent: str | None = None
    backend: str | None = None
    #: What it holds while it runs.
    cores: float = 1
    gpus: float = 0
    created: float = 0.0
    #: When the last of its dependencies had ended.
    resolved: float | None = None
    attempts: list[Attempt] = field(default_factory=list)
    ended: float | None = None
    state: State = State.PENDING
    #: What it ended with; None unless it failed or was cancelled.
    failure: Failure | None = None

    @property
    def is_block(self) -> bool:
        return self.kind == "block"

    @property
    def started(self) -> float | None:
        """When its first attempt that began did so."""
        return next((each.started for each in self.attempts if each.started is not None), None)

    @property
    def place(self) -> Attempt | None:
        """The last attempt that began."""
        return next((each for each in reversed(self.attempts) if each.started is not None), None)


@dataclass(frozen=True, slots=True)
class BackendShape:
    """A backend as the session began with it."""

    name: str
    workers: int
    cores: int
    gpus: int = 0
    #: MB.
    memory: int = 0


@dataclass(slots=True)
class Session:
    """One engine's life, as far as telemetry saw it."""

    uid: str
    #: Seconds since the epoch, by the engine's clock: the zero of all other times.
    began: float
    host: str | None = None
    version: str = ""
    python: str = ""
    pid: int | None = None
    command: tuple[str, ...] = ()
    backends: tuple[BackendShape, ...] = ()
    #: Seconds since it began; None where the file ends before: the engine was killed, or is at work.
    ended: float | None = None
    #: Lines that could not be written.
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class GpuSample:
    """How busy a GPU was; bytes."""

    id: str
    utilisation: float
    memory_used: float
    memory_total: float


@dataclass(slots=True)
class Sample:
    """How busy a host was; bytes, those of disk and network since the host's start."""

    time: float
    cpu_percent: float
    memory_used: float
    memory_total: float
    disk_read: float
    disk_written: float
    net_received: float
    net_sent: float
    gpus: tuple[GpuSample, ...] = ()


@dataclass(frozen=True, slots=True)
class LoopBlock:
    """A time in which somebody held the engine's loop."""

    time: float
    seconds: float
    who: str
    where: str


@dataclass
class Run:
    """A session with all that it called."""

    session: Session
    #: By uid, in the order of the calls.
    tasks: dict[str, Task]
    #: The time of the last event, or of the session's end.
    last: float = 0.0
    #: By host, in the order of time.
    samples: Mapping[str, list[Sample]] = field(default_factory=dict)
    loop_blocks: list[LoopBlock] = field(default_factory=list)
    #: Event types of the user's own, and how many there were.
    own_events: Counter[str] = field(default_factory=Counter)
    #: By how many seconds the clocks of hosts were ahead of the engine's, as far as that can be told; times are
    #: corrected.
    skews: Mapping[str, float] = field(default_factory=dict)
    #: Lines that are no events.
    unreadable: int = 0
    #: All sessions of the file, in the order in which they began.
    sessions: tuple[str, ...] = ()

    @cached_property
    def first(self) -> float:
        """When the first call was made; 0 where there was none."""
        return min((task.created for task in self.tasks.values()), default=0.0)

    @cached_property
    def end(self) -> float:
        """When the last task ended; the last event's time where any had not by then."""
        ends = [task.ended for task in self.tasks.values()]
        known = [end for end in ends if end is not None]
        latest = max((self._latest(task) for task in self.tasks.values()), default=0.0)
        return max(self.first, latest, 0.0 if known and len(known) == len(ends) else self.last)

    @staticmethod
    def _latest(task: Task) -> float:
        """The last time that is known of a task."""
        times = [task.created, task.resolved, task.ended]
        if task.attempts:
            times += [task.attempts[-1].submitted, task.attempts[-1].started, task.attempts[-1].ended]
        return max(time for time in times if time is not None)

    @property
    def makespan(self) -> float:
        """Seconds from the first call to the end of the last task."""
        return self.end - self.first if self.tasks else 0.0

    @cached_property
    def states(self) -> Counter[State]:
        return Counter(task.state for task in self.tasks.values())

    def attempts(self) -> Iterator[tuple[Task, Attempt, float, float]]:
        """All that ran, with start and end; what had not ended by the end of the file ends there."""
        for task in self.tasks.values():
            for attempt in task.attempts:
                if attempt.started is not None:
                    yield task, attempt, attempt.started, self._end_of(attempt.started, attempt.ended)

    def running(self, task: Task) -> float:
        """Seconds that its attempts ran; what it waited between them is not in it."""
        return sum(
            self._end_of(each.started, each.ended) - each.started for each in task.attempts if each.started is not None
        )

    def end_of(self, task: Task) -> float:
        """When it ended; the run's end where it had not."""
        return self.end if task.ended is None else task.ended

    def _end_of(self, started: float, ended: float | None) -> float:
        return max(started, self.end if ended is None else ended)
