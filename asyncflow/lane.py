"""One queue of ready tasks on their way to one backend, and how many of them may be out at a time.

A backend has a lane for plain calls, one for coroutines, and one for each amount of named resources: tasks that wait
for a GPU must not hold up tasks that need none.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable

from asyncflow.backends.contract import Backend, Capabilities, Definition, WorkItem
from asyncflow.component import Component
from asyncflow.graph import Phase

#: Seconds of work that a backend holds ahead for each of its workers: enough that none waits for the engine's loop,
#: little enough that priorities and cancellation reach most tasks before they begin.
_AHEAD = 0.01
#: The most items ahead of each worker, however short they are.
_MOST = 1000
#: Seconds below which tasks are all alike: `_MOST` of them may be ahead.
_SHORTEST = _AHEAD / _MOST
#: How much the last task's cost counts in the running mean.
_WEIGHT = 0.05
#: Seconds that tasks are taken to last until there is evidence: nothing is sent ahead.
_UNKNOWN = 1.0


class BackendState:
    """A backend as the engine uses it: started or not, broken or not."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        #: Why it can run nothing more; None while it can.
        self.broken: str | None = None
        self.lanes: dict[Hashable, Lane] = {}

    @property
    def capabilities(self) -> Capabilities:
        return self.backend.capabilities

    def lane(self, definition: Definition) -> Lane:
        """The lane that calls of `definition` take."""
        coroutines = definition.shares_worker
        key: Hashable = coroutines if definition.description is None else definition.request
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(self, coroutines)
        return lane


class Lane:
    """Ready components of one backend, by priority and then in their order."""

    __slots__ = (
        "_coroutines",
        "_cost",
        "_queues",
        "_ranks",
        "_workers",
        "dirty",
        "fixed",
        "limit",
        "out",
        "reports_start",
        "shares_memory",
        "state",
        "then",
        "thread_safe",
    )

    def __init__(self, state: BackendState, coroutines: bool) -> None:
        capabilities = state.capabilities
        self.state = state
        self.shares_memory = capabilities.shares_memory
        self.reports_start = capabilities.reports_start
        #: Whether workers may hand over as well as the loop; what must be started by hand is the loop's.
        self.thread_safe = capabilities.thread_safe and capabilities.reports_start
        self._coroutines = coroutines
        #: Coroutines cost no worker while they wait, and must all be out to overlap. Where a backend does not report
        #: starts, what is handed over must start at once.
        self.fixed = coroutines or not capabilities.reports_start
        #: Mean seconds a task.
        self._cost = _UNKNOWN
        self._workers = 0
        self.limit = 0
        self.resize()
        #: Items handed over and not yet reported as ended.
        self.out: set[WorkItem] = set()
        #: What to do when the work of an item that was given up is dead.
        self.then: dict[WorkItem, Callable[[], None]] = {}
        self._queues: dict[int, deque[Component]] = {}
        #: The keys of `_queues`, which are negated priorities, in ascending order.
        self._ranks: list[int] = []
        #: Whether the scheduler already knows that there is something to hand over.
        self.dirty = False

    def resize(self) -> None:
        """Go by the numbers that the backend has now."""
        capabilities = self.state.capabilities
        self._workers = capabilities.workers
        self.limit = capabilities.concurrency if self._coroutines else self._workers
        if not self.fixed:
            self._set_limit()

    def room(self, left: float) -> int:
        """How many items may be out where only `left` seconds are: none waits behind others until it is too late."""
        in_time = self.fixed or self.limit * self._cost <= left * self._workers
        return self.limit if in_time else min(self.limit, self._workers)

    def push(self, component: Component, first: bool = False) -> None:
        """Queue a READY component; `first` puts it before those of its priority."""
        rank = -component.binding.policy.priority
        queue = self._queues.get(rank)
        if queue is None:
            queue = self._queues[rank] = deque()
            insort(self._ranks, rank)
        if first:
            queue.appendleft(component)
        else:
            queue.append(component)

    def pop(self) -> Component | None:
        """The next READY component; those cancelled meanwhile are passed over. None where there is none."""
        while self._ranks:
            queue = self._queues[self._ranks[0]]
            while queue:
                component = queue.popleft()
                if component.phase is Phase.READY:
                    return component
            if len(self._ranks) == 1:
                break  # kept, as nearly all tasks have the same priority
            del self._queues[self._ranks.pop(0)]
        return None

    def settle(self, item: WorkItem, seconds: float | None) -> bool:
        """An item ended after `seconds`; False where it was not out (a backend that reports twice)."""
        if item not in self.out:
            return False
        self.out.remove(item)
        if seconds is not None and not self.fixed:
            before = self._cost
            seconds = max(seconds, 0.0)  # a clock may be set back
            self._cost = seconds if seconds > before else before + (seconds - before) * _WEIGHT
            if before > _SHORTEST or seconds > _SHORTEST:
                self._set_limit()
        return True

    def _set_limit(self) -> None:
        ahead = _AHEAD / self._cost if self._cost > _SHORTEST else _MOST
        self.limit = self._workers * (2 + int(ahead))
