"""Who is measured: this engine on its two backends, and the same graphs by hand on the standard library's pools."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tests.bench.patterns import Graph
from tests.bench.work import body

if TYPE_CHECKING:
    from asyncflow import Task

#: Threads or processes of each contender.
WORKERS = 2


class Contender(Protocol):
    """One way to run a graph; used on one event loop."""

    async def start(self) -> None: ...

    async def run(self, graph: Graph, iterations: int) -> list[int]:
        """The values of the graph's sinks, each of its tasks having been one call of `body` on a worker."""
        ...

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """One call on a worker."""
        ...

    async def stop(self) -> None: ...


class Asyncflow:
    """This engine, imported only where it is measured: the baselines are to be as by hand."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._tasks: dict[Callable[..., Any], Task[Any]] = {}

    async def start(self) -> None:
        from asyncflow import WorkflowEngine
        from asyncflow.backends.registry import find_backend

        make: Any = find_backend(self._backend)
        self._flow = await WorkflowEngine.create(make(workers=WORKERS))

    async def run(self, graph: Graph, iterations: int) -> list[int]:
        task = self._task(body)
        futures: list[asyncio.Future[int]] = []
        for parents in graph.parents:
            futures.append(task(iterations, *[futures[parent] for parent in parents]))
        return await asyncio.gather(*[futures[sink] for sink in graph.sinks])

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self._task(function)(*arguments)

    async def settle(self) -> None:
        """Wait until nothing is left to do for what has ended."""

    async def stop(self) -> None:
        await self._flow.shutdown()

    def _task(self, function: Callable[..., Any]) -> Task[Any]:
        if function not in self._tasks:
            self._tasks[function] = self._flow.function_task(function)
        return self._tasks[function]


class Told(Asyncflow):
    """This engine on threads, with telemetry: its file, or spans that are thrown away when they end."""

    def __init__(self, kind: str) -> None:
        super().__init__("threads")
        self._kind = kind

    async def start(self) -> None:
        await super().start()
        self._folder = tempfile.TemporaryDirectory()
        if self._kind == "file":
            self._telemetry = await self._flow.start_telemetry(self._folder.name)
        else:
            from opentelemetry.sdk.trace import SpanProcessor

            self._telemetry = await self._flow.start_telemetry(None, span_processors=[SpanProcessor()])

    async def settle(self) -> None:
        self._telemetry.summary()

    async def stop(self) -> None:
        await super().stop()
        self._folder.cleanup()


class RunInExecutor:
    """An asyncio task for each task: it awaits its parents, then `loop.run_in_executor` on a pool of threads."""

    async def start(self) -> None:
        self._pool = ThreadPoolExecutor(WORKERS)

    async def run(self, graph: Graph, iterations: int) -> list[int]:
        loop, pool = asyncio.get_running_loop(), self._pool
        tasks: list[asyncio.Task[int]] = []

        async def node(parents: list[asyncio.Task[int]]) -> int:
            values = [await parent for parent in parents]
            return await loop.run_in_executor(pool, body, iterations, *values)

        for parents in graph.parents:
            tasks.append(loop.create_task(node([tasks[parent] for parent in parents])))
        return await asyncio.gather(*[tasks[sink] for sink in graph.sinks])

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def stop(self) -> None:
        self._pool.shutdown()


class ProcessPool:
    """`ProcessPoolExecutor.submit` for each task; the done-callback of its last parent submits it."""

    async def start(self) -> None:
        self._pool = ProcessPoolExecutor(WORKERS)

    async def run(self, graph: Graph, iterations: int) -> list[int]:
        return await _ByCallbacks(self._pool, graph, iterations).run()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.wrap_future(self._pool.submit(function, *arguments))

    async def stop(self) -> None:
        self._pool.shutdown()


class _ByCallbacks:
    """One run of a graph on a pool. Callbacks come on the pool's own thread, or on the one that submits."""

    def __init__(self, pool: ProcessPoolExecutor, graph: Graph, iterations: int) -> None:
        self._pool, self._graph, self._iterations = pool, graph, iterations
        self._children = graph.children()
        self._waits = [len(parents) for parents in graph.parents]
        self._values = [0] * graph.tasks
        self._unfinished = graph.tasks
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> list[int]:
        for task, parents in enumerate(self._graph.parents):
            if not parents:
                self._submit(task)
        await self._end
        return [self._values[sink] for sink in self._graph.sinks]

    def _submit(self, task: int) -> None:
        values = [self._values[parent] for parent in self._graph.parents[task]]
        future = self._pool.submit(body, self._iterations, *values)
        future.add_done_callback(lambda ended: self._ended(task, ended))

    def _ended(self, task: int, future: Future[int]) -> None:
        self._values[task] = future.result()
        ready = []
        with self._lock:
            for child in self._children[task]:
                self._waits[child] -= 1
                if not self._waits[child]:
                    ready.append(child)
            self._unfinished -= 1
            last = not self._unfinished
        for child in ready:
            self._submit(child)
        if last:
            self._loop.call_soon_threadsafe(self._end.set_result, None)


class ClientSubmit:
    """`Client.submit` for each task on a Dask `LocalCluster`, with the futures of its parents as arguments."""

    async def start(self) -> None:
        from distributed import Client, LocalCluster

        self._cluster: Any = await LocalCluster(
            n_workers=1, threads_per_worker=WORKERS, dashboard_address=None, silence_logs=50, asynchronous=True
        )
        self._client: Any = await Client(self._cluster, asynchronous=True)

    async def run(self, graph: Graph, iterations: int) -> list[int]:
        futures: list[Any] = []
        for parents in graph.parents:
            values = [futures[parent] for parent in parents]
            futures.append(self._client.submit(body, iterations, *values, pure=False))
        return list(await self._client.gather([futures[sink] for sink in graph.sinks]))

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self._client.submit(function, *arguments, pure=False)

    async def stop(self) -> None:
        await self._client.close()
        await self._cluster.close()


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "threads": partial(Asyncflow, "threads"),
    "processes": partial(Asyncflow, "processes"),
    "dask": partial(Asyncflow, "dask"),
    "threads, file": partial(Told, "file"),
    "threads, spans": partial(Told, "spans"),
    "run_in_executor": RunInExecutor,
    "ProcessPoolExecutor": ProcessPool,
    "client.submit": ClientSubmit,
}
#: The backends that need nothing but this machine.
LOCAL = ("threads", "processes")
#: The baseline of each backend.
RAW = {"threads": "run_in_executor", "processes": "ProcessPoolExecutor", "dask": "client.submit"}
