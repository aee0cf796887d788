"""What the engine puts on each worker of the cluster: a pool of worker processes, and a store of results.

Tasks never run in the Dask worker's own process: one that dies, or holds the GIL, costs its own process and nothing
else. The agent unpickles neither functions nor arguments nor results; these pass through it as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Worker
from distributed.comm.core import Comm, connect
from distributed.core import Status

from asyncflow.backends import payload
from asyncflow.backends.aside import aside
from asyncflow.backends.contract import HostFigures, Loss, Origin, Outcome, Place, WorkItem, host_name
from asyncflow.backends.dask.wire import Message, Wire
from asyncflow.backends.hosts import HostSampler
from asyncflow.backends.launch import LEFTOVER_GRACE
from asyncflow.backends.machine import usable_gpus
from asyncflow.backends.orphans import ATTEMPT, Family, end, marks, sweep
from asyncflow.backends.payload import PackedCall, PackedError, PackedFunction, Segment
from asyncflow.backends.processes.pool import Pool
from asyncflow.backends.resources import Ledger
from asyncflow.backends.shared import Shared
from asyncflow.description import Resources
from asyncflow.version import installed_version

#: Seconds that an agent may take to connect to another one.
_CONNECT = 10.0
#: Seconds that its end waits for figures of the host that are being taken: a driver may hang.
_LAST_FIGURES = 1.0


@dataclass(frozen=True)
class Options:
    """What an engine asks of its agents."""

    #: Names the engine; part of the name of the handlers that its agents listen under.
    session: str
    #: Coroutines a worker process.
    concurrency: int
    #: Seconds between TERM and KILL for a cancelled executable.
    grace: float
    #: Ids of the GPUs of each worker, or how many; None asks the worker.
    gpus: int | tuple[str, ...] | None
    #: MB (10**6 bytes) of each worker; None asks the worker.
    memory: int | None
    #: Folders in which the engine finds modules: for what is imported by name and lies on a shared file system.
    path: tuple[str, ...]
    #: The working directory of tasks; None is the worker's.
    cwd: str | None = None

    @property
    def handler(self) -> str:
        """Under which name an agent serves."""
        return f"asyncflow-{self.session}"


@dataclass(frozen=True)
class Presence:
    """What an agent says of itself when the engine connects."""

    python: str
    asyncflow: str
    host: str
    pid: int
    total: Resources
    #: Ids of its GPUs.
    gpus: tuple[str, ...]


def versions() -> tuple[str, str]:
    """Of Python and of this library, here."""
    return platform.python_version(), installed_version()


def install(options: Options, dask_worker: Worker) -> None:
    """Let an agent serve on this worker from now on; run by the engine on each worker, on its loop."""
    sys.path += [folder for folder in options.path if folder not in sys.path and os.path.isdir(folder)]
    if options.handler not in dask_worker.handlers:
        dask_worker.handlers[options.handler] = Agent(options, dask_worker).serve


class Agent:
    """One worker's part of one engine. Everything here runs on the worker's loop, unless it says otherwise."""

    def __init__(self, options: Options, worker: Worker) -> None:
        self._options = options
        self._worker = worker
        self._name = str(worker.name)
        self._loop = asyncio.get_running_loop()
        self._definitions: dict[int, Any] = {}
        self._items: dict[int, WorkItem] = {}
        #: Under which name the result of each is kept, and from which size on.
        self._keeping: dict[int, tuple[str, int]] = {}
        #: Results that stay here, by name; some are copies of what another agent holds.
        self._results: dict[str, list[Segment]] = {}
        #: Copies that are on their way here, and who waits for them.
        self._coming: dict[str, asyncio.Task[None]] = {}
        self._peers: dict[str, Wire] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Reports of the pool's thread and of the sampler's.
        self._reports: deque[tuple[str, tuple[Any, ...], Sequence[Segment]]] = deque()
        self._due = False
        #: Placeholders of `demand`, by name; and whether none may be held any more.
        self._holds: dict[str, threading.Event] = {}
        self._holding = threading.Lock()
        self._ended = False
        #: Processes on this node by their attempts' marks.
        self._attempts = Shared(lambda: marks(ATTEMPT))
        self._wire: Wire | None = None
        self._pool: Pool | None = None
        self._sampler: HostSampler | None = None

    async def serve(self, comm: Comm) -> Status:
        """Serve a connection: the engine's until it ends, or another agent's."""
        wire = Wire(comm)
        async for verb, data, _ in wire.messages():
            if verb == "engine":
                await self._serve_engine(wire)
            elif verb == "want":
                segments = self._results.get(data[0])
                wire.post("value" if segments is not None else "gone", data, segments or ())
        return Status.dont_reply

    async def _serve_engine(self, wire: Wire) -> None:
        self._wire = wire
        total, gpus = self._resources()
        self._pool = self._make_pool(total, gpus)
        self._pool.thread.start()
        wire.post("hello", (Presence(*versions(), host_name(), os.getpid(), total, gpus),))
        grace = 0.0  # an engine that is gone without a word was killed
        try:
            async for message in wire.messages():
                if message.verb == "stop":
                    grace = message.data[0]
                    break
                self._heed(message)
        finally:
            await self._end(grace)

    def _resources(self) -> tuple[Resources, tuple[str, ...]]:
        gpus = self._options.gpus
        if gpus is None:
            gpus = int(self._worker.state.total_resources.get("GPU", 0)) or usable_gpus()
        if isinstance(gpus, int):
            gpus = tuple(map(str, range(gpus)))
        memory = self._options.memory
        if memory is None:
            memory = int(self._worker.memory_manager.memory_limit or 0) // 10**6
        return Resources(self._worker.state.nthreads, len(gpus), memory), gpus

    def _make_pool(self, total: Resources, gpus: tuple[str, ...]) -> Pool:
        ledger: Ledger[Any] = Ledger(total, gpus)
        family = Family(self._options.grace)
        # It may be a folder of the engine's own host alone.
        cwd = self._options.cwd if self._options.cwd and os.path.isdir(self._options.cwd) else None
        return Pool(self._name, total.cores, ledger, family, {}, self._options.concurrency, self, cwd)

    def hold(self, name: str) -> threading.Event:
        """What is set when the placeholder `name` has to go; from any thread."""
        with self._holding:
            held = self._holds.setdefault(name, threading.Event())
            if self._ended:
                held.set()
            return held

    def _let_go(self) -> None:
        with self._holding:
            self._ended = True
            for held in self._holds.values():
                held.set()

    async def _end(self, grace: float) -> None:
        """Stop the pool; the engine is told when nothing of it is left."""
        self._let_go()
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.stop()
            await aside(lambda: sampler.thread.join(_LAST_FIGURES))
        self._worker.handlers.pop(self._options.handler, None)
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop(grace)
            await aside(pool.thread.join)
        self._flush()
        for task in self._tasks:
            task.cancel()
        for peer in self._peers.values():
            peer.abort()
        self._results.clear()
        if self._wire is not None:
            self._wire.post("stopped")
            await self._wire.close()

    # --- the engine's words ------------------------------------------------------------------------------------------

    def _heed(self, message: Message) -> None:
        heed: Callable[[tuple[Any, ...], Sequence[Segment]], None] = getattr(self, f"_on_{message.verb}")
        heed(message.data, message.segments)

    def _on_define(self, data: tuple[Any, ...], segments: Sequence[Segment]) -> None:
        number, bare = data
        bare.fn = PackedFunction(segments[0])
        self._definitions[number] = bare

    def _on_forget(self, data: tuple[Any, ...], _: Sequence[Segment]) -> None:
        self._definitions.pop(data[0], None)

    def _on_cancel(self, data: tuple[Any, ...], _: Sequence[Segment]) -> None:
        item = self._items.get(data[0])
        if item is not None and self._pool is not None:
            item.cancelled = True
            self._pool.cancel(item)

    def _on_recall(self, _: tuple[Any, ...], __: Sequence[Segment]) -> None:
        if self._pool is not None:
            self._pool.give_back(self._returned)

    def _on_fetch(self, data: tuple[Any, ...], _: Sequence[Segment]) -> None:
        found = self._results.get(data[0])
        self._say("value" if found is not None else "gone", data, found or ())

    def _on_free(self, data: tuple[Any, ...], _: Sequence[Segment]) -> None:
        for name in data:
            self._results.pop(name, None)

    def _on_release(self, data: tuple[Any, ...], _: Sequence[Segment]) -> None:
        self.hold(data[0]).set()

    def _on_measure(self, data: tuple[Any, ...], _: Sequence[Segment]) -> None:
        if self._sampler is not None:
            self._sampler.stop()
        self._sampler = HostSampler(data[0], self._measured)
        self._sampler.start()

    def _measured(self, figures: HostFigures) -> None:
        """Called on the sampler's thread."""
        self._report("measured", (figures,))

    def _on_strike(self, data: tuple[Any, ...], _: Sequence[Segment]) -> None:
        self._keep(asyncio.ensure_future(self._strike(*data)))

    async def _strike(self, question: int, mark: str, number: int) -> None:
        """Send a signal to what runs here of an attempt that is none of the pool's; answers how many processes."""
        found = await aside(lambda: self._attempts.get().get(mark, []))
        end(found, number)
        self._say("answer", (question, len(found)))

    def _on_sweep(self, data: tuple[Any, ...], _: Sequence[Segment]) -> None:
        self._keep(asyncio.ensure_future(self._sweep(*data)))

    async def _sweep(self, question: int, mark: str) -> None:
        """End what such an attempt has left here."""
        if await aside(lambda: self._attempts.get().get(mark, [])):
            await aside(lambda: sweep(ATTEMPT, mark, grace=LEFTOVER_GRACE))
        self._say("answer", (question, True))

    def _on_run(self, data: tuple[Any, ...], segments: Sequence[Segment]) -> None:
        key, number, uid, attempt, directory, solo, gpus, name, large, sources, *origin = data
        item = WorkItem(self._definitions[number], (), {}, uid=uid, attempt=attempt)
        item.directory, item.component, item.solo, item.gpus = directory, key, solo, gpus
        if origin:
            item.origin = Origin(*origin[0])
        self._items[key] = item
        self._keeping[key] = name, large
        if sources:
            self._keep(asyncio.ensure_future(self._run_with(item, segments, sources)))
        else:
            self._submit(item, segments, {})

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _submit(self, item: WorkItem, segments: Sequence[Segment], given: Mapping[str, Sequence[Segment]]) -> None:
        item.packed = PackedCall(segments, given)
        if self._pool is not None:
            self._pool.submit([item])

    async def _run_with(self, item: WorkItem, segments: Sequence[Segment], sources: Mapping[str, str]) -> None:
        """Run a call once the results that it works on are here; `sources` has where each can be had."""
        await asyncio.gather(*(self._bring(name, address) for name, address in sources.items()))
        missing = [name for name in sources if name not in self._results]
        if missing:
            self._forget(item)
            self._say("missing", (item.component, missing))
        else:
            self._submit(item, segments, {name: self._results[name] for name in sources})

    async def _bring(self, name: str, address: str) -> None:
        if name in self._results:
            return
        coming = self._coming.get(name)
        if coming is None:
            coming = self._coming[name] = asyncio.ensure_future(self._copy(name, address))
            coming.add_done_callback(lambda _: self._coming.pop(name, None))
        await asyncio.wait([coming])

    async def _copy(self, name: str, address: str) -> None:
        """Get a result from another agent; where that cannot be had, it will be found missing."""
        with contextlib.suppress(OSError):
            comm = await connect(address, _CONNECT, **self._worker.security.get_connection_args("worker"))
            try:
                await comm.write({"op": self._options.handler, "reply": False})
                wire = Wire(comm)
                wire.post("want", (name,))
                async for verb, _, segments in wire.messages():
                    if verb == "value":
                        self._results[name] = list(segments)
                        self._say("copied", (name,))
                    break
            finally:
                comm.abort()

    # --- the pool's reports, on its thread ---------------------------------------------------------------------------

    def started(self, item: WorkItem, place: Place, time: float) -> None:
        self._report("started", (item.component, time, place))

    def finished(self, item: WorkItem, outcome: Outcome) -> None:
        key, error, value = item.component, outcome.error, outcome.value
        segments: Sequence[Segment] = ()
        if isinstance(error, PackedError):
            segments = [error.data]
        elif error is not None:
            segments = [payload.dump_error(item.definition.name, error)]
        elif isinstance(value, (list, tuple)):
            segments, value = value, None
        name, large = self._forget(item)
        if error is None and not segments and not large:  # it must stay, however small it is
            segments = payload.pack(value)
        size = sum(memoryview(segment).nbytes for segment in segments)
        spans = () if outcome.spans is None else (outcome.spans,)
        if error is None and segments and size >= large:
            self._results[name] = list(segments)
            self._report("stored", (key, outcome.started, outcome.ended, outcome.place, size, *spans))
        else:
            data = key, error is not None, outcome.started, outcome.ended, outcome.place, value, *spans
            self._report("finished", data, segments)

    def _forget(self, item: WorkItem) -> tuple[str, int]:
        self._items.pop(item.component, None)
        item.packed = None
        return self._keeping.pop(item.component)

    def lost(self, item: WorkItem, loss: Loss) -> None:
        self._forget(item)
        self._report("lost", (item.component, loss))

    def broken(self, reason: str) -> None:
        self._report("broken", (reason,))

    def resized(self) -> None:
        """A pool keeps its size."""

    def _returned(self, items: list[WorkItem]) -> None:
        for item in items:
            self._forget(item)
        self._report("returned", ([item.component for item in items],))

    def _report(self, verb: str, data: tuple[Any, ...], segments: Sequence[Segment] = ()) -> None:
        self._reports.append((verb, data, segments))
        if not self._due:
            self._due = True
            with contextlib.suppress(RuntimeError):  # the worker's loop is closed
                self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self._due = False
        while self._reports:
            self._say(*self._reports.popleft())

    def _say(self, verb: str, data: tuple[Any, ...], segments: Sequence[Segment] = ()) -> None:
        if self._wire is not None:
            self._wire.post(verb, data, segments)
