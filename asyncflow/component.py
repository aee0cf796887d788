"""One call of a task or block, from registration to end."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncflow.backends.contract import Definition, Kind, Loss, Place, WorkItem
from asyncflow.graph import Node, State

if TYPE_CHECKING:
    from asyncflow.future import TaskFuture
    from asyncflow.lane import Lane
    from asyncflow.scheduler import Scheduler


@dataclass(frozen=True)
class Policy:
    """What the engine does with a task's attempts; nothing a worker needs to know."""

    #: The name of the backend to use; None is the engine's default.
    backend: str | None = None
    #: How often a failed attempt is followed by another.
    retries: int = 0
    #: Seconds before the next attempt, or a function that gives them for the number of failures so far (1, 2, ...).
    retry_delay: float | Callable[[int], float] = 0.0
    #: How many losses of its worker a task survives.
    max_losses: int = 3
    #: Seconds that one attempt may run; None is no limit.
    timeout: float | None = None
    #: Higher goes first among the ready tasks of one backend.
    priority: int = 0


class Tally:
    """How many calls of one name an engine has had, and how many ended how. Outlives the components in the history."""

    __slots__ = ("calls", "cancelled", "done", "failed")

    def __init__(self) -> None:
        self.calls = 0
        self.done = 0
        self.failed = 0
        self.cancelled = 0


class Binding:
    """A task on one engine: its definition and policy, and the lane that its calls take."""

    __slots__ = ("definition", "keeps", "lane", "policy", "prefix", "scheduler", "tally", "watched")

    def __init__(self, definition: Definition, policy: Policy, lane: Lane, scheduler: Scheduler, keeps: object) -> None:
        self.definition = definition
        self.policy = policy
        self.lane = lane
        self.scheduler = scheduler
        self.tally = scheduler.tally(definition.name)
        #: Of the uids of its calls.
        self.prefix = "block" if definition.kind is Kind.BLOCK else "task"
        #: Whether the scheduler must know at once that an attempt began.
        self.watched = policy.timeout is not None
        #: The task object, kept alive while any of its calls is unfinished.
        self.keeps = keeps


class Course(Node):
    """What an observer notes of a component; unset without one.

    Not in an object of its own: that would have to be looked at by every run of the garbage collector, which for a
    hundred thousand pending tasks costs more than all the rest of telemetry.
    """

    __slots__ = (
        "context_ids",
        "created",
        "depends_on",
        "ended",
        "error",
        "lost",
        "over",
        "past",
        "place",
        "queued",
        "resolved",
        "seen_running",
        "shown",
        "span",
        "started",
        "submitted",
        "told",
        "traceparent",
        "waiting",
    )

    # Times are seconds since the epoch; None for what has not happened. `started` and `ended` are by the clock of the
    # host that ran it. All but the first two are of the current attempt.
    created: float
    resolved: float | None
    submitted: float | None
    queued: float | None
    started: float | None
    ended: float | None
    place: Place | None
    #: uids of the components that it depends on, in the order met.
    depends_on: tuple[str, ...]
    #: Why it ended, where that was not well.
    error: BaseException | Loss | None
    #: Whether the attempt ended with its worker, through no fault of the task's.
    lost: bool
    #: Whether the component has ended, and all of the above is known.
    over: bool
    #: Its span while that is open; its ids as OpenTelemetry's SpanContext, and as W3C writes them.
    span: Any
    context_ids: Any
    traceparent: str | None
    #: What its body's process told beside the result, as `backends.origin` packs it.
    told: bytes | None
    #: Attempts before this one that have not been told of yet; None where there are none.
    past: list[Any] | None
    # The observer's own: how far it has told of it, whether it is about to, whether it told that it runs.
    shown: int
    waiting: bool
    seen_running: bool


class Component(Course):
    """A node of the graph with all that the engine knows of one call. Belongs to one scheduler and its loop."""

    __slots__ = (
        "after",
        "args",
        "attempt",
        "binding",
        "context",
        "failures",
        "foreign",
        "future",
        "item",
        "kwargs",
        "losses",
        "nested",
        "parent",
        "reason",
        "seq",
        "solo",
        "timer",
        "workflow_id",
    )

    def __init__(
        self,
        seq: int,
        binding: Binding,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        nested: bool | None,
        workflow_id: str | None,
        parent: str | None,
    ) -> None:
        Node.__init__(self)
        #: Number of the call in its engine, from 1.
        self.seq = seq
        #: Numbers of the first calls that it depends on, and 0 at the end where there are more. For drawings: the edges
        #: themselves go when these end.
        self.after: tuple[int, ...] = ()
        self.binding = binding
        #: As passed, futures and all; dropped when the component has ended.
        self.args = args
        self.kwargs = kwargs
        #: Whether futures stand inside containers; None where there are none at all.
        self.nested = nested
        self.workflow_id = workflow_id
        #: uid of the block in whose body the call was made.
        self.parent = parent
        #: Set by the scheduler right after; dropped when the component has ended and the user holds the future.
        self.future: TaskFuture[Any] | None = None
        self.context: contextvars.Context | None = None
        #: The current attempt, from its hand-over to its end.
        self.item: WorkItem | None = None
        #: Attempts so far, failed ones, and workers lost under it while it ran alone.
        self.attempt = 0
        self.failures = 0
        self.losses = 0
        #: Must run alone: it was on a worker that was lost.
        self.solo = False
        #: Unfinished dependencies that are no components of this engine.
        self.foreign = 0
        #: Why its running block was asked to end, for the future.
        self.reason: Any = None
        #: Ends the current attempt when its time is up, or a BACKOFF.
        self.timer: asyncio.TimerHandle | None = None

    @property
    def uid(self) -> str:
        """Unique in its engine: `task.000001`, `block.000002`."""
        return f"{self.binding.prefix}.{self.seq:06d}"

    @property
    def name(self) -> str:
        return self.binding.definition.name

    @property
    def definition(self) -> Definition:
        return self.binding.definition

    @property
    def backend(self) -> str:
        """The name of the one that runs it."""
        return self.binding.lane.state.backend.name

    @property
    def state(self) -> State:
        # Whether it runs is known by the attempt alone: a backend says so there, without a turn of the loop.
        if self.item is not None and self.item.started is not None:
            return State.RUNNING
        return self.phase.state

    def story(self) -> str:
        return (
            f"{self.name!r} ({self.uid}) in phase {self.phase.name}, attempt {self.attempt}, "
            f"waiting for {self.waits} dependencies"
        )

    @property
    def description(self) -> dict[str, Any]:
        """What `flow.components[uid]["description"]` shows; `arguments` only while it is unfinished."""
        definition = self.binding.definition
        executable = definition.kind is Kind.EXECUTABLE
        where = f"{getattr(definition.fn, '__module__', '?')}.{getattr(definition.fn, '__qualname__', definition.name)}"
        return {
            "name": definition.name,
            "workflow_id": self.workflow_id,
            "function": None if executable else where,
            "executable": where if executable else None,
            "arguments": None if self.phase.ended else (self.args, dict(self.kwargs or {})),
            "parent": self.parent,
        }
