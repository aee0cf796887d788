"""One engine's time on a cluster: its agents come with the workers and go with them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from distributed.comm.core import connect

from asyncflow.backends.contract import Outcome, Place, Reporter, WorkItem
from asyncflow.backends.dask import agent
from asyncflow.backends.dask.agent import Options, Presence
from asyncflow.backends.dask.connection import Connection
from asyncflow.backends.dask.demand import Demand
from asyncflow.backends.dask.dispatcher import Dispatcher
from asyncflow.backends.dask.measuring import Measuring
from asyncflow.backends.dask.node import Node
from asyncflow.backends.dask.wire import Wire
from asyncflow.description import Resources
from asyncflow.errors import BackendStartError, WorkerRefusedError

_log = logging.getLogger("asyncflow")

#: Seconds that an agent may take to answer.
_ANSWER = 30.0
#: Seconds between two looks at how many workers are needed.
_GLANCE = 1.0
#: Seconds beyond the grace that the agents get to end what runs.
_MARGIN = 3.0
#: Seconds after which the log says what the engine waits for.
_SILENCE = 10.0


class Session:
    """The nodes of a cluster while an engine uses them. On the backend's own loop."""

    def __init__(
        self,
        backend: Any,
        connection: Connection,
        options: Options,
        large: int,
        patience: float | None,
        reporter: Reporter,
    ) -> None:
        """`patience` is seconds without any worker after which nothing is waited for any more; None is for ever."""
        self._backend = backend
        self._connection = connection
        self._options = options
        self._reporter = reporter
        self.dispatcher = Dispatcher(backend, options.session, options.concurrency, large, reporter)
        if connection.steps is not None:
            reports = StepReports(self.dispatcher)
            name = f"{backend.name}-step"
            self.dispatcher.steps = connection.steps(reports, self.dispatcher.nodes, name=name, grace=options.grace)
            self.dispatcher.memory_per_core = connection.memory_per_core
        self.dispatcher.awaited = len(connection.sizes)
        self._tasks: set[asyncio.Task[Any]] = set()
        #: What stays with each worker that is in use, or was refused, by address.
        self._uses: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._refusal: WorkerRefusedError | None = None
        self._gone: str | None = None
        self._patience = patience
        self._giving_up: asyncio.TimerHandle | None = None
        #: Why the last worker left.
        self._last_end = ""
        self._closing = False
        self._measuring: Measuring | None = None

    def measure(self, interval: float) -> None:
        """Have hosts measured every `interval` seconds from now on, also those that come."""
        self._measuring = Measuring(interval, self.dispatcher.nodes)

    async def open(self) -> None:
        """Begin to use what workers there are and will be; returns when there is one."""
        self._keep(self._watch_scheduler())
        client = self._connection.client
        client.subscribe_topic("all", self._on_event)
        await self._meet_all()
        if self._connection.may_grow:
            self._keep(self._ask_for_workers())
        waiting = asyncio.ensure_future(self._first_node())
        done, _ = await asyncio.wait([waiting], timeout=_SILENCE)
        if not done:
            _log.warning("backend %r waits for the first worker of %s", self._backend.name, self._connection.address)
        await waiting

    async def _first_node(self) -> None:
        while not self.dispatcher.nodes:
            if self._gone is not None:
                raise BackendStartError(self._backend.name, self._gone)
            if self._refusal is not None:
                raise self._refusal
            self._changed.clear()
            await self._changed.wait()

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask_for_workers(self) -> None:
        """Let the scheduler see what there is to do, now and then."""
        demand, work = Demand(self._connection.client, self._options.handler), self.dispatcher
        while not self._closing:
            # Before the first worker comes, one is wanted for whatever there will be to do.
            waiting = max(work.waiting, not work.nodes and not self._changed.is_set())
            demand.adjust(work.nodes, waiting, work.results.holders())
            await asyncio.sleep(_GLANCE)

    # --- workers come ------------------------------------------------------------------------------------------------

    def _on_event(self, event: Any) -> None:
        _, message = event
        if isinstance(message, dict) and message.get("action") == "add-worker":
            self._keep(self._meet_all())

    async def _meet_again(self) -> None:
        """Where only the connection ended, the worker is still there."""
        await asyncio.sleep(_GLANCE)
        await self._meet_all()

    async def _meet_all(self) -> None:
        with contextlib.suppress(OSError):
            for address, name in (await self._connection.workers()).items():
                self._meet(address, name)

    def _meet(self, address: str, name: str) -> None:
        if address not in self._uses and not self._closing:
            self._uses[address] = self._keep(self._use(address, name))

    async def _use(self, address: str, name: str) -> None:
        """Put an agent on a worker and stay with it until one of the two ends."""
        try:
            wire = await asyncio.wait_for(self._agent_on(address), _ANSWER)
            messages = wire.messages()
            _, (presence,), _ = await asyncio.wait_for(messages.__anext__(), _ANSWER)
        except Exception as error:
            self._refuse(WorkerRefusedError(address, f"{type(error).__name__}: {error}"))
            return
        if presence_differs := _difference(presence):
            wire.abort()
            self._refuse(WorkerRefusedError(address, presence_differs))
            return
        node = Node(address, name, presence, wire)
        self.dispatcher.join(node)
        if self._measuring is not None:
            self._measuring.joined(node)
        self._count()
        reason = f"the connection to Dask's worker {name} at {address} ended"
        try:
            async for verb, data, segments in messages:
                if verb == "broken":
                    reason = data[0]
                    break
                if verb == "stopped":
                    break
                if verb == "measured":
                    self._reporter.measured(data[0])
                    continue
                self.dispatcher.heed(node, verb, data, segments)
        finally:
            self._uses.pop(address, None)
            wire.abort()
            node.silence()
            if not self._closing:
                self._last_end = reason
                self.dispatcher.leave(node, reason)
                if self._measuring is not None:
                    self._measuring.left(node, self.dispatcher.nodes)
                self._count()
                self._keep(self._meet_again())

    async def _agent_on(self, address: str) -> Wire:
        client = self._connection.client
        errors = await client.run(agent.install, self._options, workers=[address], on_error="return")
        for error in errors.values():
            if isinstance(error, BaseException):
                raise error
        arguments = self._connection.security.get_connection_args("client")
        comm = await connect(address, _ANSWER, **arguments)
        await comm.write({"op": self._options.handler, "reply": False})
        wire = Wire(comm)
        wire.post("engine")
        return wire

    def _refuse(self, error: WorkerRefusedError) -> None:
        if not self._closing:
            _log.warning("%s", error)
            self._refusal = error
            self._changed.set()

    def _count(self) -> None:
        """Tell the engine how much there is now."""
        totals = self._connection.sizes or [node.total for node in self.dispatcher.nodes]
        total = Resources(*(sum(getattr(each, kind) for each in totals) for kind in _KINDS))
        largest = Resources(*(max((getattr(each, kind) for each in totals), default=0) for kind in _KINDS))
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        if self.dispatcher.nodes:
            self._backend.resize(total, largest, spreads_ranks=self.dispatcher.steps is not None)
        elif self._patience is not None:
            self._giving_up = asyncio.get_running_loop().call_later(self._patience, self._give_up)
        self._changed.set()

    def _give_up(self) -> None:
        if not self.dispatcher.misses_workers:  # nobody does so far
            self._count()
            return
        self.dispatcher.fail(f"it has had no worker for {self._patience:g} s; the last: {self._last_end}")

    # --- the scheduler goes ------------------------------------------------------------------------------------------

    async def _watch_scheduler(self) -> None:
        reason = await self._connection.ended()
        if not self._closing:
            self._gone = reason
            self._changed.set()
            self.dispatcher.fail(self._gone)

    # --- the engine goes ---------------------------------------------------------------------------------------------

    async def close(self, grace: float) -> None:
        """End everything within `grace` seconds and a little, and wait for it."""
        self._closing = True
        if self._giving_up is not None:
            self._giving_up.cancel()
        self.dispatcher.cancel_all()
        if self.dispatcher.steps is not None:
            await self.dispatcher.steps.stop(grace)
        for node in self.dispatcher.nodes:
            node.wire.post("stop", (grace,))
        if ending := [self._uses[node.address] for node in self.dispatcher.nodes if node.address in self._uses]:
            await asyncio.wait(ending, timeout=grace + _MARGIN)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.dispatcher.abandon()
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self._connection.client.unsubscribe_topic("all")
        await self._connection.close()


class StepReports:
    """Brings what executables beside the agents report to the backend's loop."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._loop = asyncio.get_running_loop()

    def started(self, item: WorkItem, place: Place, time: float) -> None:
        self._loop.call_soon_threadsafe(self._dispatcher.step_started, item, place, time)

    def finished(self, item: WorkItem, outcome: Outcome) -> None:
        self._loop.call_soon_threadsafe(self._dispatcher.step_ended, item, outcome)


_KINDS = ("cores", "gpus", "memory")


#: What to do about a worker that is not like the engine.
_SAME = "give both the same, for example one virtual environment on a shared file system"


def _difference(presence: Presence) -> str | None:
    """What of a worker does not go with this engine."""
    python, library = agent.versions()
    if presence.python.split(".")[:2] != python.split(".")[:2]:
        return (
            f"it runs Python {presence.python}, the engine Python {python}, between which no function travels; {_SAME}"
        )
    if presence.asyncflow != library:
        return f"it has asyncflow {presence.asyncflow}, the engine asyncflow {library}; {_SAME}"
    return None
