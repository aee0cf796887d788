"""The contract between the engine and a backend.

A backend moves work items to workers and reports back. It knows nothing of graphs, scopes, retries or telemetry. What
it must keep, and the conformance suite in `asyncflow.testing` checks:

* every submitted item gets exactly one end report, `finished` or `lost`, and only when its work is dead;
* an item is run at most once, and not at all where it was cancelled before it began;
* `submit` and `cancel` never block and are called on the engine's loop only; reports may come from any thread.
"""

from __future__ import annotations

import contextvars
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from asyncflow.description import Resources, TaskDescription

#: Raised by one whenever a backend written for the former version would no longer work.
CONTRACT_VERSION = 1

#: How many coroutines one worker's loop carries at once, where a backend does not say otherwise.
CONCURRENCY = 2500


class Kind(Enum):
    """What a component is made of."""

    FUNCTION = "function"
    EXECUTABLE = "executable"
    BLOCK = "block"


@dataclass(frozen=True)
class ExecutableOptions:
    """How an executable task's command is run."""

    #: The string that the function returns is a shell's script, not split into words.
    shell: bool = False
    #: Write stdout and stderr to files and return stdout's path.
    capture_stdio: bool = False
    #: Working directory of the command; None is the worker's.
    cwd: str | None = None
    #: Environment variables added to the worker's.
    env: Mapping[str, str] = field(default_factory=dict)


class Origin(NamedTuple):
    """Whose work an item is: what its log records and spans are told by, and the trace that they join."""

    session_id: str
    task_id: str
    workflow_id: str | None
    #: The trace context of the task's span, as W3C writes it; None where no spans are recorded.
    traceparent: str | None = None
    tracestate: str | None = None


_ONE_CORE = Resources(cores=1)


class Definition:
    """What a decorator made of a function, as far as workers need to know it; one object for all its calls."""

    __slots__ = (
        "__weakref__",
        "cost",
        "description",
        "executable",
        "fn",
        "is_async",
        "kind",
        "name",
        "plain",
        "rank",
        "reference",
        "request",
        "shares_worker",
    )

    def __init__(
        self,
        fn: Callable[..., Any],
        kind: Kind,
        name: str,
        *,
        is_async: bool,
        description: TaskDescription | None = None,
        executable: ExecutableOptions | None = None,
        reference: tuple[str, str] | None = None,
    ) -> None:
        self.fn = fn
        self.kind = kind
        self.name = name
        #: Whether calling `fn` gives a coroutine.
        self.is_async = is_async
        self.description = description
        #: Set for executables only.
        self.executable = executable
        #: Whether a call is the call of `fn` and nothing more.
        self.plain = kind is Kind.FUNCTION and not is_async and description is None
        #: Whether items run beside others on one worker's loop: coroutines that hold no named resources.
        self.shares_worker = kind is Kind.FUNCTION and is_async and description is None
        #: What an item holds from start to end; one core where nothing is named.
        self.request = description.resources if description is not None else _ONE_CORE
        #: What each of its ranks holds.
        self.rank = description.rank if description is not None else _ONE_CORE
        #: Module and qualified name under which a worker can import the task; None where it must travel by value.
        self.reference = reference
        #: Mean seconds that its calls lately took, kept by the backend that runs them; None until there is evidence.
        self.cost: float | None = None


class WorkItem:
    """One attempt of one task, handed to a backend. The engine gives every attempt an item of its own."""

    #: How many of its ranks run on which node; set by a backend that places them, read by what it hands the item to.
    nodes: Mapping[str, int]

    __slots__ = (
        "_origin",
        "_uid",
        "args",
        "attempt",
        "cancelled",
        "component",
        "context",
        "definition",
        "directory",
        "gpus",
        "handle",
        "kwargs",
        "lane",
        "nodes",
        "packed",
        "solo",
        "started",
        "watched",
    )

    def __init__(
        self,
        definition: Definition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        uid: str | None = None,
        attempt: int = 1,
        context: contextvars.Context | None = None,
    ) -> None:
        self.definition = definition
        self.args = args
        self.kwargs = kwargs
        self._uid = uid
        #: 1 for the first.
        self.attempt = attempt
        #: The caller's context variables; used where the worker is a thread of this process.
        self.context = context
        #: Must have its worker to itself: it was on a worker that was lost.
        self.solo = False
        #: Where this item's files go; set for executables with `capture_stdio`.
        self.directory: str | None = None
        self._origin: Origin | Callable[[WorkItem], Origin] | None = None
        # The backend's: which GPUs it was given, what can stop its work, whether it was asked to stop.
        self.gpus: tuple[str, ...] = ()
        self.handle: Any = None
        self.cancelled = False
        # Where one backend hands the item on to another: its arguments as they were pickled, instead of `args`.
        self.packed: Any = None
        # The engine's: whose attempt this is, through which lane it went, when it began.
        self.component: Any = None
        self.lane: Any = None
        self.started: float | None = None
        #: Whether the engine wants to be told at once that it began.
        self.watched = False

    @property
    def uid(self) -> str:
        """The task's uid, the same for all its attempts."""
        # Made when it is asked for: few are.
        return self._uid if self._uid is not None else str(self.component.uid)

    @property
    def origin(self) -> Origin | None:
        """What is made current while its body runs; None without telemetry."""
        origin = self._origin
        if origin is None or isinstance(origin, Origin):
            return origin
        # Made when it is first asked for: of the many that wait with a backend, none.
        self._origin = made = origin(self)
        return made

    @origin.setter
    def origin(self, origin: Origin | Callable[[WorkItem], Origin] | None) -> None:
        # What makes it, where no trace goes with it.
        self._origin = origin

    @property
    def has_untraced_origin(self) -> bool:
        """Whether it has an origin that nobody has asked for yet, and that no trace goes with."""
        return self._origin is not None and not isinstance(self._origin, Origin)

    @property
    def request(self) -> Resources:
        """What it holds from start to end."""
        return self.definition.request

    def __repr__(self) -> str:
        return f"<WorkItem {self.definition.name} {self.uid} attempt {self.attempt}>"


def host_name() -> str:
    """What users call this host."""
    # Nodes of one test cluster share a host name; SLURM's name is the one that its users know.
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


@dataclass(frozen=True)
class Place:
    """Where work ran."""

    worker: str
    host: str = field(default_factory=host_name)
    pid: int = field(default_factory=os.getpid)


class Outcome:
    """How an attempt ended: with a value, or with an error of its own."""

    __slots__ = ("ended", "error", "place", "spans", "started", "value")

    def __init__(
        self, value: Any, error: BaseException | None, started: float, ended: float, place: Place | None
    ) -> None:
        self.value = value
        self.error = error
        #: Seconds since the epoch, by the clock of the host that ran it.
        self.started = started
        self.ended = ended
        self.place = place
        #: Spans that the body's own code ended in another process than the engine's, as `backends.origin` packs them.
        self.spans: bytes | None = None


class RemoteValue:
    """As an outcome's value: the result stays where it was made until somebody other than its backend needs it.

    The backend takes it back in the arguments of later items, where it stands for the value; nobody else is given one.
    """

    __slots__ = ("backend",)

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def fetch(self, done: Callable[[Any, BaseException | None], None]) -> None:
        """Have `done(value, error)` called, on any thread, when the value is here or cannot be had."""
        raise NotImplementedError


@dataclass(frozen=True)
class Loss:
    """How an attempt ended without an outcome: its worker died, or it never reached one."""

    #: What happened to the worker, for people: "the worker process was ended by signal 9 (SIGKILL)".
    reason: str
    host: str = field(default_factory=host_name)
    #: The worker's exit code, negative for a signal; None where it is not known.
    exit_code: int | None = None
    #: Whether the task had begun: only then can it be what killed the worker.
    begun: bool = True
    #: Whether nothing else was running there: only then does the loss count against the task.
    alone: bool = True


@dataclass(frozen=True)
class GpuFigures:
    """How busy one GPU is."""

    #: Its index, or UUID, as its driver tells it.
    id: str
    #: Percent of the time.
    utilisation: float
    #: Bytes.
    memory_used: int
    memory_total: int


@dataclass(frozen=True)
class HostFigures:
    """How busy one host is. Bytes; those of disk and network count from the host's start."""

    host: str
    #: Seconds since the epoch, by the host's clock.
    time: float
    #: Of all its cores, 0 to 100, since the figures before.
    cpu_percent: float
    memory_used: int
    memory_total: int
    disk_read: int
    disk_written: int
    net_received: int
    net_sent: int
    gpus: tuple[GpuFigures, ...] = ()


class WorkDied(Exception):
    """As an outcome's error: the process that was started for this one call died, which counts as a loss."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self.loss = loss


class ItemReports(Protocol):
    """What becomes of items where nothing but they can end, told by whoever runs them. Callable from any thread."""

    def started(self, item: WorkItem, place: Place, time: float) -> None:
        """`item` began to run. Optional where the capability `reports_start` is False."""

    def finished(self, item: WorkItem, outcome: Outcome) -> None:
        """`item` ended by itself, or is dead after `cancel`."""


class Reports(ItemReports, Protocol):
    """The same where workers can be lost."""

    def lost(self, item: WorkItem, loss: Loss) -> None:
        """`item` will not end: its worker is gone."""

    def broken(self, reason: str) -> None:
        """The backend can run nothing any more; items not yet reported are taken as lost."""

    def resized(self) -> None:
        """The backend's capabilities have other numbers than before."""


class Reporter(Reports, Protocol):
    """How a backend tells the engine. Callable from any thread; a burst of calls wakes the engine's loop once."""

    def measured(self, figures: HostFigures) -> None:
        """How busy a host of the backend's is: what `MeasuringBackend.measure` asked for."""

    @property
    def work_dir(self) -> str:
        """The engine's folder for files, an absolute path: who writes there makes it, and a folder of its own in it."""


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do. Declared, so that nothing has to be guessed from its type."""

    #: How many calls run at once.
    workers: int
    #: Cores, GPUs and memory in all; a request for more fails at the call.
    total: Resources
    #: Arguments and results need not be pickled, and context variables are the caller's.
    shares_memory: bool
    #: How many coroutines run at once, over all workers; equal to `workers` where they do not overlap.
    concurrency: int
    #: A plain function that runs can be ended.
    cancels_functions: bool
    #: An executable that runs can be ended.
    cancels_executables: bool
    #: The death of a worker loses the tasks on it and no others.
    survives_worker_loss: bool
    #: `Reporter.started` is called when an item begins; else items count as begun when they are handed over.
    reports_start: bool = True
    #: The most that one task may hold, where that is less than the total: what one node has.
    largest: Resources | None = None
    #: An executable may have ranks on several nodes: then `largest` is for each of these.
    spreads_ranks: bool = False
    #: `submit` may be called from any thread, also from within a report; never twice at once.
    thread_safe: bool = False
    #: The version of this contract that the backend was written for.
    contract_version: int = CONTRACT_VERSION

    def shortfalls(self, definition: Definition) -> list[str]:
        """In words, each kind of resource of which a call of `definition` asks for more than it can ever get."""
        largest = self.largest or self.total
        if not self.spreads_ranks or definition.kind is not Kind.EXECUTABLE:
            return definition.request.shortfalls(largest)
        lacks = definition.rank.shortfalls(largest)
        return definition.request.shortfalls(self.total) or [f"{lack} on one node" for lack in lacks]


class Backend(Protocol):
    """What runs tasks. Every method is called on the engine's loop; `submit` on any thread, if it is `thread_safe`."""

    @property
    def name(self) -> str:
        """Under which tasks pick it; unique in an engine."""

    @property
    def capabilities(self) -> Capabilities:
        """Valid once `start` has returned."""

    async def start(self, reporter: Reporter) -> None:
        """Make ready for work. An exception here is reported as BackendStartError."""

    def submit(self, items: Sequence[WorkItem]) -> None:
        """Take a batch of items, to be run in this order as workers become free."""

    def cancel(self, item: WorkItem) -> None:
        """End `item` if that is possible; its end is reported when it is dead."""

    async def stop(self, grace: float) -> None:
        """End everything that still runs, politely for at most `grace` seconds, and free all resources."""


class MeasuringBackend(Backend, Protocol):
    """What a backend has besides, if its workers are on other hosts than the engine's."""

    def measure(self, interval: float) -> None:
        """From now on report `Reporter.measured` every `interval` seconds for each host, also for those that come."""
