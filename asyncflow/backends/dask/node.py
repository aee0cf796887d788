"""One worker of the cluster as the engine sees it: its agent's connection, what it has, what is free."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count
from typing import Any, NamedTuple

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


class Share(NamedTuple):
    """What one executable that runs beside the agents has of a node."""

    node: Node
    ranks: int
    held: Resources
    gpus: tuple[str, ...]


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
        #: What the others of these hold, and the executables beside its agent.
        self._held = Resources()
        #: How many executables that run beside its agent hold something here.
        self.steps = 0
        #: The job that it is kept free for.
        self.reserved: Job | None = None
        #: Whether it was asked to give back what it has not begun.
        self.recalled = False
        self._definitions = KnownDefinitions(wire.post)
        self._free_gpus = deque(presence.gpus)
        self._numbers = count()
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._silent = False

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
        job.gpus = self._take_gpus(job.request.gpus)
        about = item.uid, item.attempt, item.directory, item.solo, job.gpus
        data: tuple[Any, ...] = (job.key, self._number(job.call), *about, job.name, job.large, sources)
        if item.origin is not None:
            data = (*data, tuple(item.origin))
        self.wire.post("run", data, job.call.segments)

    def take(self, key: int) -> Job | None:
        """What it no longer has; None where it had no such job."""
        job = self.out.pop(key, None)
        if job is not None:
            job.node = None
            self._count(job, -1)
            self._free_gpus.extend(job.gpus)
        return job

    def _take_gpus(self, number: int) -> tuple[str, ...]:
        """Chosen here, not by the agent: it knows nothing of executables that run beside it."""
        return tuple(self._free_gpus.popleft() for _ in range(number))

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

    # --- questions to its agent --------------------------------------------------------------------------------------

    def ask(self, verb: str, *data: Any) -> asyncio.Future[Any]:
        """What its agent answers; None where its connection ends first."""
        number = next(self._numbers)
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        self.wire.post(verb, (number, *data))
        if self._silent:
            self.answered(number, None)
        return answer

    def answered(self, number: int, answer: Any) -> None:
        """Its agent has answered."""
        question = self._questions.pop(number)
        if not question.done():
            question.set_result(answer)

    def silence(self) -> None:
        """It will not answer any more."""
        self._silent = True
        for number in list(self._questions):
            self.answered(number, None)

    # --- executables beside its agent --------------------------------------------------------------------------------

    def room(self, rank: Resources, *, empty: bool = False) -> int:
        """How many ranks of such an executable have room here, now or were it `empty`."""
        held = Resources() if empty else self._held
        cores = self.total.cores if empty else self.free_cores
        free = (
            (cores, rank.cores),
            (self.total.gpus - held.gpus, rank.gpus),
            (self.total.memory - held.memory, rank.memory),
        )
        return max(0, min(have // want for have, want in free if want))

    def begin_step(self, ranks: int, rank: Resources) -> Share:
        """So many ranks of one run here from now on."""
        self.steps += 1
        held = Resources(ranks * rank.cores, ranks * rank.gpus, ranks * rank.memory)
        self._hold(held, 1)
        return Share(self, ranks, held, self._take_gpus(held.gpus))

    def adopt(self, share: Share) -> Share:
        """They run on where this was another worker's node before."""
        self.steps += 1
        self._hold(share.held, 1)
        for gpu in share.gpus:
            self._free_gpus.remove(gpu)
        return share._replace(node=self)

    def end_step(self, share: Share) -> None:
        """They have ended."""
        self.steps -= 1
        self._hold(share.held, -1)
        self._free_gpus.extend(share.gpus)

    def _number(self, call: Call) -> int:
        """Under which number its agent knows a function."""
        known = self._definitions.number_of(call.definition)
        return self._definitions.define(call.definition, call.function) if known is None else known


class Job:
    """One item on its way over the cluster, or one run of a call whose result was lost."""

    __slots__ = (
        "begun",
        "call",
        "gpus",
        "item",
        "key",
        "kind",
        "large",
        "name",
        "node",
        "rank",
        "remakes",
        "shares",
        "sources",
    )

    def __init__(self, key: int, item: WorkItem, call: Call, name: str, large: int) -> None:
        self.key = key
        self.item = item
        self.call = call
        #: Under which its result is kept on the cluster, from `large` bytes on.
        self.name = name
        self.large = large
        #: "call", "coroutine", "holder" of named resources, or "step": an executable beside the agents.
        self.kind = "holder"
        if item.definition.shares_worker:
            self.kind = "coroutine"
        elif item.definition.description is None:
            self.kind = "call"
        self.node: Node | None = None
        #: Which nodes its agent was told to get its inputs from.
        self.sources: dict[str, Node] = {}
        #: Ids of the GPUs that it has on its node.
        self.gpus: tuple[str, ...] = ()
        #: What each rank of a step holds.
        self.rank = Resources()
        #: What a step has of which nodes; None where it has not begun, or is none.
        self.shares: list[Share] | None = None
        #: When it began, as far as was reported.
        self.begun: float | None = None
        #: The lost result that this makes again; then the engine knows nothing of it.
        self.remakes: Result | None = None

    @property
    def request(self) -> Resources:
        return self.item.definition.request
