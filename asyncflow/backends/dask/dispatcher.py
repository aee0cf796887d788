"""Which node gets which task: the queue of the Dask backend. Everything here runs on the backend's own loop."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from asyncflow.backends import payload
from asyncflow.backends.body import cancelled_outcome
from asyncflow.backends.contract import Definition, Kind, Loss, Outcome, Place, Reports, WorkItem
from asyncflow.backends.dask.node import Job, Node, Share
from asyncflow.backends.dask.placing import rank_of, spread
from asyncflow.backends.dask.results import (
    Call,
    Result,
    Results,
    StayedValue,
    collected,
    found_in,
    gather_values,
    with_values,
)
from asyncflow.backends.payload import Segment
from asyncflow.errors import ResultLostError, UnsatisfiableRequestError

_log = logging.getLogger("asyncflow")

#: Seconds after which a node that has more than it can be running is asked to give back what it has not begun, where
#: another one is free.
_PATIENCE = 0.02
#: How much the last call's cost counts in the running mean.
_WEIGHT = 0.1
#: How many losses of its worker the making again of a result survives.
_MAX_LOSSES = 3


class Steps(Protocol):
    """What runs executables beside the agents, on nodes that it is given. Called on the backend's own loop."""

    def run(self, item: WorkItem, shares: Sequence[Share]) -> None:
        """Run `item` there; its end is reported."""

    def cancel(self, item: WorkItem) -> None:
        """End `item`."""

    async def stop(self, grace: float) -> None:
        """Cancel what runs, and wait until it is dead and reported."""


class Dispatcher:
    """Jobs that wait, the nodes, and what is where."""

    def __init__(self, backend: Any, session: str, concurrency: int, large: int, reporter: Reports) -> None:
        """`concurrency` is coroutines a core, `large` the bytes from which a result stays on the cluster."""
        self._backend = backend
        self._session = session
        self._large = large
        self._concurrency = concurrency
        self._reporter = reporter
        self._here = Place(backend.name)
        #: Runs executables as steps of their own; None where the agents do.
        self.steps: Steps | None = None
        #: MB (10**6 bytes) that a step takes for each core where its task names no memory.
        self.memory_per_core = 0
        #: How many nodes there will be, where that is known.
        self.awaited = 0
        self._keys = count(1)
        self.nodes: list[Node] = []
        #: Jobs that wait for a node, by kind; those whose results have to be made again are in none.
        self._calls: deque[Job] = deque()
        self._coroutines: deque[Job] = deque()
        self._holders: deque[Job] = deque()
        self._jobs: dict[WorkItem, Job] = {}
        self.results = Results(self._make_again)
        self._functions: WeakKeyDictionary[Definition, bytes] = WeakKeyDictionary()
        self._watching = False
        #: Whether `assign` will be called in the next turn of the loop.
        self._due = False

    @property
    def waiting(self) -> int:
        """Jobs that wait for a node."""
        return len(self._calls) + len(self._coroutines) + len(self._holders)

    @property
    def misses_workers(self) -> bool:
        """Whether anything waits for one."""
        return bool(self._jobs)

    # --- the engine's words ------------------------------------------------------------------------------------------

    def submit(self, items: Iterable[WorkItem]) -> None:
        """Take items; those that cannot be pickled end at once."""
        for item in items:
            try:
                job = self._step(item) if self._is_step(item) else self._job(item, self._call(item))
            except BaseException as error:
                self._reporter.finished(item, self._failed(error))
                continue
            self._jobs[item] = job
            self._queue(job)
        self.assign()

    def _job(self, item: WorkItem, call: Call, remakes: Result | None = None) -> Job:
        key = next(self._keys)
        if remakes is None:
            job = Job(key, item, call, f"{self._session}-{key}", self._large)
        else:
            job = Job(key, item, call, remakes.name, 0)
            job.remakes = remakes
        for result in call.inputs.values():
            self.results.want(result)
        return job

    def _make_again(self, result: Result) -> None:
        """Run the call again whose result was lost."""
        item = WorkItem(result.call.definition, (), {}, uid=result.uid)
        item.origin = result.call.origin
        self._jobs[item] = job = self._job(item, result.call, result)
        # Not at once: what it works on may be lost as well, and so on for as long as a chain of them is.
        asyncio.get_running_loop().call_soon(self._queue_or_fail, job, None)

    def _is_step(self, item: WorkItem) -> bool:
        return self.steps is not None and item.definition.kind is Kind.EXECUTABLE

    def _step(self, item: WorkItem) -> Job:
        """An executable of an allocation: its function runs here, its command where there is room."""
        job = self._job(item, Call(item.definition, b"", (), found_in([*item.args, *item.kwargs.values()])))
        job.kind = "step"
        job.rank = rank_of(item.definition, self.memory_per_core)
        return job

    def _call(self, item: WorkItem) -> Call:
        definition = item.definition
        function = self._functions.get(definition)
        if function is None:
            function = self._functions[definition] = payload.dump_function(definition)
        with collected() as inputs:
            data, *buffers = payload.pack_arguments(definition, item.args, item.kwargs)
        # Copied: where the call must be made again, the caller may long have changed his arrays.
        return Call(definition, function, [data, *map(bytes, buffers)], inputs, item.origin)

    def _queue(self, job: Job, first: bool = False) -> None:
        """Let a job wait for a node, once all that it works on is there."""
        lost = [result for result in job.call.inputs.values() if not result.holders]
        if lost:
            self.results.remake(lost[0], partial(self._queue_or_fail, job))
            return
        queue = {"call": self._calls, "coroutine": self._coroutines}.get(job.kind, self._holders)
        queue.appendleft(job) if first else queue.append(job)

    def _queue_or_fail(self, job: Job, error: BaseException | None) -> None:
        if error is not None:
            self._end(job, self._failed(error))
        elif job.item.cancelled:
            self._end(job, cancelled_outcome(self._here))
        else:
            self._queue(job)
            self.assign()

    def cancel(self, item: WorkItem) -> None:
        """End an item; one that waits is found cancelled at its turn."""
        job = self._jobs.get(item)
        if job is None:
            return
        if job.node is not None:
            job.node.wire.post("cancel", (job.key,))
        elif job.shares is not None and self.steps is not None:
            self.steps.cancel(item)
        else:
            self.assign()

    def cancel_all(self) -> None:
        """End what waits, and the fetches."""
        for queue in (self._calls, self._coroutines, self._holders):
            while queue:
                self._end(queue.popleft(), cancelled_outcome(self._here))
        for job in [job for job in self._jobs.values() if job.node is None and job.shares is None]:
            self._end(job, cancelled_outcome(self._here))

    def abandon(self) -> None:
        """Everything has been ended: whatever was not reported, and all who wait for a result, are told so."""
        for node in self.nodes:
            for key in list(node.out):
                job = node.take(key)
                if job is not None:
                    self._end(job, cancelled_outcome(self._here))
        self.nodes.clear()
        self.results.abandon("the engine was shut down")

    def fail(self, reason: str) -> None:
        """The cluster is lost, and all results that stayed there."""
        self.results.abandon(reason)
        self._reporter.broken(reason)

    # --- jobs to nodes -----------------------------------------------------------------------------------------------

    def assign_soon(self) -> None:
        """As `assign`, once for all that is done in this turn of the loop."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self.assign)

    def assign(self) -> None:
        """Give the nodes what they can take."""
        self._due = False
        self._assign_holders()
        self._assign_each(self._calls, self._node_for_call)
        self._assign_each(self._coroutines, self._node_for_coroutine)
        self._watch()

    def _assign_each(self, queue: deque[Job], find: Callable[[Job], Node | None], before: float = math.inf) -> None:
        """Those that came `before` a job with this key."""
        while queue:
            job = queue[0]
            if job.key > before:
                return
            if job.item.cancelled:
                self._end(queue.popleft(), cancelled_outcome(self._here))
                continue
            node = find(job)
            if node is None:
                return
            queue.popleft()
            self._give(node, job)

    def _assign_holders(self) -> None:
        """In their order: the first that does not fit has a node kept free for it; small ones never starve it."""
        for job in [job for job in self._holders if job.item.cancelled]:
            self._holders.remove(job)
            self._unreserve(job)
            self._end(job, cancelled_outcome(self._here))
        for job in list(self._holders):
            self._assign_each(self._calls, self._node_for_call, before=job.key)
            if self._place(job):
                self._holders.remove(job)
                self._unreserve(job)
            elif any(node.reserved is job for node in self.nodes):
                return
            # Else no node that there is could ever have it, and it holds up nobody.

    def _place(self, job: Job) -> bool:
        """Let it begin; where there is no room, see to it that there will be, and False."""
        free = [node for node in self.nodes if node.reserved in (None, job)]
        if job.kind == "step":
            ranks = spread(job, free)
            if ranks:
                self._begin_step(job, ranks)
                return True
        else:
            fitting = [node for node in free if node.fits(job)]
            if fitting:
                self._give(self._best(fitting, job), job)
                return True
        return self._reserve(job)

    def _reserve(self, job: Job) -> bool:
        """Keep nodes free for a job; True where it ended, for there will never be enough of them."""
        if any(node.reserved is job for node in self.nodes):
            return False
        if job.kind == "step":
            possible = list(spread(job, self.nodes, empty=True))
        else:
            fitting = [node for node in self.nodes if not job.request.shortfalls(node.total)]
            possible = [max(fitting, key=lambda node: node.free_cores)] if fitting else []
        for node in possible:
            node.reserved = job
        if possible or self.steps is None or len(self.nodes) < max(1, self.awaited):
            return False
        largest = max((node.total for node in self.nodes), key=lambda total: total.cores)
        definition = job.item.definition
        shortfalls = job.rank.shortfalls(largest) if job.kind == "step" else job.request.shortfalls(largest)
        what = shortfalls or ["more ranks than there is room for"]
        self._end(job, self._failed(UnsatisfiableRequestError(definition.name, self._here.worker, what)))
        return True

    def _begin_step(self, job: Job, ranks: dict[Node, int]) -> None:
        """Run a step where there is room for it, once what it works on is here."""
        job.shares = [node.begin_step(count, job.rank) for node, count in ranks.items()]
        gather_values(self.results, job.call.inputs.values(), partial(self._run_step, job))

    def _run_step(self, job: Job, values: dict[str, Any], error: BaseException | None) -> None:
        item = job.item
        try:
            if error is not None:
                raise error
            if values:
                item.args, item.kwargs = with_values(item, values)
        except BaseException as failed:
            self._end(job, self._failed(failed))
            return
        if self.steps is not None and job.shares is not None:
            self.steps.run(item, job.shares)

    def step_started(self, item: WorkItem, place: Place, began: float) -> None:
        """A job step runs."""
        if item in self._jobs:
            self._reporter.started(item, place, began)

    def step_ended(self, item: WorkItem, outcome: Outcome) -> None:
        """A job step has ended."""
        job = self._jobs.get(item)
        if job is not None:
            self._end(job, outcome)
            self.assign_soon()

    def _unreserve(self, job: Job) -> None:
        for node in self.nodes:
            if node.reserved is job:
                node.reserved = None

    def _node_for_call(self, job: Job) -> Node | None:
        free = [node for node in self.nodes if node.free_cores > 0 and node.reserved is None]
        if free:
            return self._best(free, job)
        ahead = [node for node in self.nodes if node.takes_call(job.item.definition)]
        return min(ahead, key=lambda node: node.calls / node.total.cores, default=None)

    def _node_for_coroutine(self, job: Job) -> Node | None:
        able = [node for node in self.nodes if node.coroutines < node.total.cores * self._concurrency]
        if job.call.inputs:
            return self._best(able, job) if able else None
        return min(able, key=lambda node: node.coroutines / node.total.cores, default=None)

    def _best(self, nodes: Sequence[Node], job: Job) -> Node:
        """The one that has most of what the job works on; else the one that is least busy."""

        def merit(node: Node) -> tuple[int, int]:
            return sum(result.size for result in job.call.inputs.values() if node in result.holders), node.free_cores

        return max(nodes, key=merit) if len(nodes) > 1 else nodes[0]

    def _give(self, node: Node, job: Job) -> None:
        lost = [result for result in job.call.inputs.values() if not result.holders]
        if lost:
            self._queue(job)
        else:
            node.give(job)

    def _watch(self) -> None:
        """Take back what waits behind a task that takes long, while another node has nothing to do."""
        if not self._watching and self._unbalanced():
            self._watching = True
            asyncio.get_running_loop().call_later(_PATIENCE, self._recall)

    def _unbalanced(self) -> list[Node]:
        if len(self.nodes) < 2 or not any(node.free_cores > 0 and node.reserved is None for node in self.nodes):
            return []
        return [node for node in self.nodes if not node.recalled and node.hoards]

    def _recall(self) -> None:
        self._watching = False
        for node in self._unbalanced():
            node.recalled = True
            node.wire.post("recall")

    # --- the agents' words -------------------------------------------------------------------------------------------

    def heed(self, node: Node, verb: str, data: tuple[Any, ...], segments: Sequence[Segment]) -> None:
        """What an agent says."""
        self.assign_soon()
        if verb == "started":
            self._on_started(node, *data)
        elif verb in ("finished", "stored"):
            self._on_end(node, verb, data, segments)
        elif verb == "lost":
            self._on_lost(node, *data)
        elif verb == "returned":
            self._on_returned(node, data[0])
        elif verb == "missing":
            self._on_missing(node, *data)
        elif verb in ("value", "gone"):
            self.results.received(data[0], segments if verb == "value" else None)
        elif verb == "copied":
            self.results.copied(data[0], node)
        elif verb == "answer":
            node.answered(*data)

    def _on_started(self, node: Node, key: int, began: float, place: Place) -> None:
        job = node.out.get(key)
        if job is not None:
            job.begun = began
            if job.remakes is None:
                self._reporter.started(job.item, place, began)

    def _on_lost(self, node: Node, key: int, loss: Loss) -> None:
        job = node.take(key)
        if job is not None:
            self._lose(job, loss)

    def _on_end(self, node: Node, verb: str, data: tuple[Any, ...], segments: Sequence[Segment]) -> None:
        job = node.take(data[0])
        if job is None:
            return
        if verb == "stored":
            _, started, ended, place, size, *spans = data
            outcome = self._stored(node, job, Outcome(None, None, started, ended, place), size)
        else:
            _, failed, started, ended, place, value, *spans = data
            outcome = self._received(job, failed, segments, Outcome(value, None, started, ended, place))
        if spans:
            outcome.spans = spans[0]
        _note_cost(job.item.definition, outcome.ended - outcome.started)
        self._end(job, outcome)

    def _stored(self, node: Node, job: Job, outcome: Outcome, size: int) -> Outcome:
        if job.remakes is not None:
            job.remakes.holders[node] = None
            return outcome
        result = Result(job.name, job.item.uid, size, job.call, node)
        self.results.add(result)
        self.results.want(result)
        outcome.value = StayedValue(self._backend, result, self._backend.fetch, self._backend.release)
        return outcome

    def _received(self, job: Job, failed: bool, segments: Sequence[Segment], outcome: Outcome) -> Outcome:
        name = job.item.definition.name
        try:
            if failed:
                outcome.error = payload.load_error(name, segments[0])
            elif segments and job.remakes is None:
                outcome.value = payload.unpack_result(name, segments)
        except BaseException as unreadable:
            outcome.error = unreadable
        return outcome

    def _end(self, job: Job, outcome: Outcome) -> None:
        self._forget(job)
        if job.remakes is None:
            self._reporter.finished(job.item, outcome)
        else:
            self.results.made(job.remakes, outcome.error)

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.item, None)
        for share in job.shares or ():
            share.node.end_step(share)
        job.shares = None
        for result in job.call.inputs.values():
            self.results.release(result)

    def _lose(self, job: Job, loss: Loss) -> None:
        if job.remakes is not None:
            job.item.attempt += 1
            if job.item.attempt <= _MAX_LOSSES:
                self._queue(job, first=True)
            else:
                self._end(job, self._failed(ResultLostError(job.call.definition.name, job.item.uid, loss.reason)))
        elif job.item.cancelled:
            self._end(job, cancelled_outcome(self._here))
        else:
            self._forget(job)
            self._reporter.lost(job.item, loss)

    def _failed(self, error: BaseException) -> Outcome:
        outcome = cancelled_outcome(self._here)
        outcome.error = error
        return outcome

    def _on_missing(self, node: Node, key: int, names: Sequence[str]) -> None:
        """A node could not get what a job works on: whoever was said to have it is asked no more."""
        job = node.take(key)
        if job is None:
            return
        for name in names:
            self.results.missing(name, job.sources[name])
        self._queue(job, first=True)

    def _on_returned(self, node: Node, keys: Sequence[int]) -> None:
        node.recalled = False
        for key in reversed(keys):
            job = node.take(key)
            if job is not None:
                # Calls like the one that it was behind are no longer taken for short.
                job.item.definition.cost = max(job.item.definition.cost or 0.0, _PATIENCE)
                self._queue(job, first=True)

    # --- nodes come and go -------------------------------------------------------------------------------------------

    def join(self, node: Node) -> None:
        """Use a node from now on, with the executables beside the worker that was there before."""
        for job in self._jobs.values():
            if job.shares is not None:
                job.shares = [node.adopt(share) if share.node.name == node.name else share for share in job.shares]
        self.nodes.append(node)
        self.assign()

    def leave(self, node: Node, reason: str) -> None:
        """Its connection has ended: what it had is lost."""
        if node not in self.nodes:
            return
        self.nodes.remove(node)
        node.silence()
        self.results.lose(node)
        begun = [job for job in node.out.values() if job.begun is not None]
        for key, job in reversed(list(node.out.items())):
            node.take(key)
            if job.begun is None and not job.item.cancelled:
                self._queue(job, first=True)
            else:
                # In company nothing is proven; but whoever was suspected before has had its node to die with it again.
                alone = len(begun) == 1 or job.item.solo
                self._lose(job, Loss(reason, node.host, None, begun=True, alone=alone))
        self.assign()


def _note_cost(definition: Definition, seconds: float) -> None:
    mean = definition.cost
    definition.cost = seconds if mean is None else mean + (seconds - mean) * (1.0 if seconds > mean else _WEIGHT)
