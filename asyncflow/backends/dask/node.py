"""One worker of the cluster as the engine sees it: its agent's connection, what it has, what is free."""

from __future__ import annotations

from asyncflow.backends.contract import Definition, Place, WorkItem
from asyncflow.backends.dask.agent import Presence
from asyncflow.backends.dask.results import Call, Result
from asyncflow.backends.dask.wire import Wire
from asyncflow.backends.definitions import KnownDefinitions
from asyncflow.description import Resources

#: Seconds of work that a node is given ahead for each of its cores, by what calls of the same definition lately took:
#: more than a message there and back takes.
_AHEAD = 0.01
#: The most calls ahead of each core, however short they are.
_MOST = 500


class Node:
    """A worker of the cluster with an agent of ours."""

    def __init__(self, address: str, name: str, presence: Presence, wire: Wire) -> None:
        #: Under which Dask knows it, and other workers reach it.
        self.address = address
        self.name = name
        self.host = presence.host
        self.total = presence.total
        self.wire = wire
        #: What it has and has not reported as ended, by key.
        self.out: dict[int, Job] = {}
        #: How many of these are plain calls, and coroutines.
        self.calls = 0
        self.coroutines = 0
        #: What the others of these hold, and the job steps beside them.
        self._held = Resources()
        #: How many job steps hold something here.
        self.steps = 0
        #: The job that it is kept free for.
        self.reserved: Job | None = None
        #: Whether it was asked to give back what it has not begun.
        self.recalled = False
        self._definitions = KnownDefinitions(wire.post)

    def place(self) -> Place:
        """Where its agent is."""
        return Place(self.name, self.host, 0)

    # --- how much it takes -------------------------------------------------------------------------------------------

    @property
    def hoards(self) -> bool:
        """Whether it has more than it can be running; of coroutines, any that has not begun."""
        if self.calls > self.total.cores - self._held.cores:
            return True
        return self.coroutines > 0 and any(job.kind == "coroutine" and job.begun is None for job in self.out.values())

    @property
    def free_cores(self) -> int:
        """Cores for which it has nothing to do."""
        return self.total.cores - self._held.cores - self.calls

    def takes_call(self, definition: Definition) -> bool:
        """Whether it should have a further plain call now."""
        if self.reserved is not None or self.steps:
            return False  # its agent knows nothing of job steps: what it has beyond what is free would run beside them
        cost = definition.cost
        ahead = 0 if cost is None else min(_MOST, int(_AHEAD / max(cost, 1e-6)))
        return self.calls < (self.total.cores - self._held.cores) * (1 + ahead)

    def fits(self, job: Job) -> bool:
        """Whether what `job` asks for is free."""
        request, held = job.request, self._held
        return (
            request.cores <= self.free_cores
            and request.gpus <= self.total.gpus - held.gpus
            and request.memory <= self.total.memory - held.memory
        )

    # --- what it is given --------------------------------------------------------------------------------------------

    def give(self, job: Job) -> None:
        """Send `job` there."""
        self.out[job.key] = job
        job.node = self
        self._count(job, 1)
        job.sources = {name: next(iter(result.holders)) for name, result in job.call.inputs.items()}
        sources = {name: holder.address for name, holder in job.sources.items()}
        item = job.item
        about = item.uid, item.attempt, item.directory, item.solo
        self.wire.post(
            "run", (job.key, self._number(job.call), *about, job.name, job.large, sources), job.call.segments
        )

    def take(self, key: int) -> Job | None:
        """What it no longer has; None where it had no such job."""
        job = self.out.pop(key, None)
        if job is not None:
            job.node = None
            self._count(job, -1)
        return job

    def _count(self, job: Job, sign: int) -> None:
        if job.kind == "call":
            self.calls += sign
        elif job.kind == "coroutine":
            self.coroutines += sign
        else:
            self._hold(job.request, sign)

    def _hold(self, request: Resources, sign: int) -> None:
        held = self._held
        self._held = Resources(
            held.cores + sign * request.cores,
            held.gpus + sign * request.gpus,
            held.memory + sign * request.memory,
        )

    # --- job steps beside its agent ----------------------------------------------------------------------------------

    def room(self, rank: Resources, *, empty: bool = False) -> int:
        """How many ranks of a job step have room here, now or were it `empty`."""
        held = Resources() if empty else self._held
        cores = self.total.cores if empty else self.free_cores
        free = (
            (cores, rank.cores),
            (self.total.gpus - held.gpus, rank.gpus),
            (self.total.memory - held.memory, rank.memory),
        )
        return max(0, min(have // want for have, want in free if want))

    def begin_step(self, held: Resources) -> None:
        """A job step holds this."""
        self.steps += 1
        self._hold(held, 1)

    def end_step(self, held: Resources) -> None:
        """It holds it no more."""
        self.steps -= 1
        self._hold(held, -1)

    def _number(self, call: Call) -> int:
        """Under which number its agent knows a function."""
        known = self._definitions.number_of(call.definition)
        return self._definitions.define(call.definition, call.function) if known is None else known


class Job:
    """One item on its way over the cluster, or one run of a call whose result was lost."""

    __slots__ = ("begun", "call", "item", "key", "kind", "large", "name", "node", "rank", "remakes", "sources", "step")

    def __init__(self, key: int, item: WorkItem, call: Call, name: str, large: int) -> None:
        self.key = key
        self.item = item
        self.call = call
        #: Under which its result is kept on the cluster, from `large` bytes on.
        self.name = name
        self.large = large
        #: "call", "coroutine", "holder" of named resources, or "step".
        self.kind = "holder"
        if item.definition.shares_worker:
            self.kind = "coroutine"
        elif item.definition.description is None:
            self.kind = "call"
        self.node: Node | None = None
        #: Which nodes its agent was told to get its inputs from.
        self.sources: dict[str, Node] = {}
        #: What each rank of a job step holds.
        self.rank = Resources()
        #: What a job step holds of which nodes; None where it has not begun, or is none.
        self.step: dict[Node, Resources] | None = None
        #: When it began, as far as was reported.
        self.begun: float | None = None
        #: The lost result that this makes again; then the engine knows nothing of it.
        self.remakes: Result | None = None

    @property
    def request(self) -> Resources:
        return self.item.definition.request
