"""A backend whose tasks run on the workers of a Dask cluster, whoever started that."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from asyncflow import options
from asyncflow.backends.aside import aside
from asyncflow.backends.contract import Capabilities, Reporter, WorkItem
from asyncflow.backends.dask.agent import Options
from asyncflow.backends.dask.connection import Connection
from asyncflow.backends.dask.results import Done, Result, StayedValue
from asyncflow.backends.dask.session import Session
from asyncflow.description import Resources
from asyncflow.errors import ResultNotFetchedError

#: Seconds between TERM and KILL for a cancelled executable.
GRACE = 5.0
#: Bytes from which a result stays on the cluster until somebody awaits it.
LARGE = 64 * 1024


class ClusterBackend:
    """All but the cluster: `connect` is what a subclass adds.

    Its loop runs on a thread of its own, so that neither the cluster nor the engine's loop waits for the other.
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int,
        large: int,
        grace: float,
        patience: float | None,
        gpus: int | tuple[str, ...] | None = None,
        memory: int | None = None,
        cwd: str | None = None,
    ) -> None:
        """`gpus` and `memory` (MB) are those of each worker, `cwd` where its tasks run; None lets it say so."""
        self.name = options.name("name", name)
        self._patience = patience if patience is None else options.seconds("patience", patience)
        self._concurrency = options.whole("concurrency", concurrency, 1)
        self._large = options.whole("large", large, 1)
        self._agent = Options(
            session=uuid.uuid4().hex[:12],
            concurrency=concurrency,
            grace=options.seconds("grace", grace),
            gpus=tuple(map(str, gpus)) if isinstance(gpus, (list, tuple)) else gpus,
            memory=memory,
            path=tuple(folder for folder in sys.path if folder),
            cwd=cwd,
        )
        self.capabilities = self._capable(Resources(), Resources())
        self._commands: deque[tuple[Callable[..., None], Any]] = deque()
        self._woken = False

    async def connect(self, reporter: Reporter) -> Connection:
        """Connect to the cluster, or start one; on the backend's own loop."""
        raise NotImplementedError

    def _capable(self, total: Resources, largest: Resources, spreads_ranks: bool = False) -> Capabilities:
        return Capabilities(
            workers=max(1, total.cores),
            total=total,
            largest=largest,
            spreads_ranks=spreads_ranks,
            shares_memory=False,
            concurrency=max(1, total.cores) * self._concurrency,
            cancels_functions=True,
            cancels_executables=True,
            survives_worker_loss=True,
            thread_safe=True,
        )

    async def start(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=f"{self.name}-loop", daemon=True)
        self._thread.start()
        try:
            await self._on_loop(self._open())
        except BaseException:
            await self.stop(0.0)
            raise

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _on_loop(self, coroutine: Coroutine[Any, Any, None]) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    async def _open(self) -> None:
        self._session: Session | None = None
        connection = await self.connect(self._reporter)
        self._session = Session(self, connection, self._agent, self._large, self._patience, self._reporter)
        await self._session.open()

    def resize(self, total: Resources, largest: Resources, *, spreads_ranks: bool) -> None:
        """The cluster has `total`, of which one node has `largest`; `spreads_ranks` is as in Capabilities."""
        self.capabilities = self._capable(total, largest, spreads_ranks)
        self._reporter.resized()

    def submit(self, items: Sequence[WorkItem]) -> None:
        self._command(self._submit, items)

    def cancel(self, item: WorkItem) -> None:
        item.cancelled = True
        self._command(self._cancel, item)

    def fetch(self, value: StayedValue, done: Done) -> None:
        """Bring a result here; from any thread."""
        self._command(self._fetch, (value, done))

    def release(self, result: Result) -> None:
        """Nothing stands for a result any more; from any thread."""
        self._command(self._release, result)

    def measure(self, interval: float) -> None:
        """As MeasuringBackend has it."""
        self._command(self._measure, interval)

    async def stop(self, grace: float) -> None:
        if not hasattr(self, "_thread") or not self._thread.is_alive():
            return
        await self._on_loop(self._close(grace))
        self._loop.call_soon_threadsafe(self._loop.stop)
        await aside(self._thread.join, f"{self.name}-stop")

    async def _close(self, grace: float) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close(grace)

    # --- commands, from any thread to the backend's loop --------------------------------------------------------------

    def _command(self, function: Callable[[Session, Any], None], argument: Any) -> None:
        self._commands.append((function, argument))
        if not self._woken:
            self._woken = True
            if threading.current_thread() is self._thread:
                self._loop.call_soon(self._work_off)
            else:
                with contextlib.suppress(RuntimeError):  # closed: what comes later than the end finds nothing to do
                    self._loop.call_soon_threadsafe(self._work_off)

    def _work_off(self) -> None:
        self._woken = False
        while self._commands:
            function, argument = self._commands.popleft()
            if self._session is not None:
                function(self._session, argument)
            elif isinstance(argument, tuple) and isinstance(argument[0], StayedValue):
                value, done = argument
                done(None, ResultNotFetchedError(value.result.call.definition.name, value.result.uid))

    @staticmethod
    def _submit(session: Session, items: Sequence[WorkItem]) -> None:
        session.dispatcher.submit(items)

    @staticmethod
    def _cancel(session: Session, item: WorkItem) -> None:
        session.dispatcher.cancel(item)

    @staticmethod
    def _fetch(session: Session, wanted: tuple[StayedValue, Done]) -> None:
        value, done = wanted
        session.dispatcher.results.fetch(value.result, done)

    @staticmethod
    def _release(session: Session, result: Result) -> None:
        session.dispatcher.results.release(result)

    @staticmethod
    def _measure(session: Session, interval: float) -> None:
        session.measure(interval)
