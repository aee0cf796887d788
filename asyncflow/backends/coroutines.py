"""Coroutines on a worker: many share one event loop, which takes further ones only while it is free."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import selectors
import threading
from collections import deque
from collections.abc import Callable
from time import time
from typing import Any

from asyncflow.backends.body import cancelled_outcome, close_loop, enter_worker, task_error
from asyncflow.backends.contract import ItemReports, Outcome, Place, WorkItem
from asyncflow.backends.origin import enter, spans

_log = logging.getLogger("asyncflow")


class CoroutineQueue:
    """Coroutines that wait for a loop, and the loops that wait for coroutines."""

    def __init__(self) -> None:
        self.items: deque[WorkItem] = deque()
        #: Loops that sleep in their selector: only such a loop is surely free. An ordered set; the last is woken
        #: first, which keeps coroutines together on few loops while these can keep up.
        self.parked: dict[CoroutineLoop, None] = {}

    def put(self, item: WorkItem) -> None:
        """Queue `item` and wake a free loop, if there is one; a busy one looks here before it sleeps."""
        self.items.append(item)
        self.wake_one()

    def wake_one(self) -> None:
        """Wake one sleeping loop. Callable from any thread."""
        try:
            loop, _ = self.parked.popitem()
        except KeyError:
            return
        loop.wake()

    def park(self, loop: CoroutineLoop) -> bool:
        """`loop` is about to sleep; False where there is something for it here."""
        self.parked[loop] = None
        # Looked at after parking: whoever puts an item now either is seen here or sees this loop parked.
        if not self.items:
            return True
        self.parked.pop(loop, None)
        return False


class CoroutineLoop:
    """An event loop on a thread of its own that takes coroutines from a queue, one at a time between its steps.

    A coroutine that blocks holds up only what is already on this loop: it takes no further ones while it is held.
    """

    def __init__(self, queue: CoroutineQueue, reports: ItemReports, place: Place, concurrency: int) -> None:
        self._queue = queue
        self._reports = reports
        self._place = place
        self._concurrency = concurrency
        self._live: dict[WorkItem, asyncio.Task[None]] = {}
        self._loop = asyncio.SelectorEventLoop(_ParkingSelector(self))
        self._stopping = False
        self.thread = threading.Thread(target=self._run, name=place.worker, daemon=True)

    @property
    def live(self) -> list[WorkItem]:
        """Items whose coroutine has not ended."""
        return list(self._live)

    def wake(self) -> None:
        """Look at the queue again; from any thread."""
        self._call(self._pull)

    def cancel(self, item: WorkItem) -> None:
        """Cancel the coroutine of `item`, if it still runs here; from any thread."""
        self._call(self._cancel, item)

    def stop(self) -> None:
        """Cancel every coroutine here and end the thread once they are dead; from any thread."""
        self._call(self._stop)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _run(self) -> None:
        enter_worker()
        try:
            while not self._stopping:
                self._run_loop()
        finally:
            self._queue.parked.pop(self, None)
            close_loop(self._loop)

    def _run_loop(self) -> None:
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            # Raised by an asyncio task that user code made beside its own; asyncio lets these two end the loop.
            _log.exception("user code on %s tried to end the program; it runs on", self._place.worker)

    def _stop(self) -> None:
        self._stopping = True
        for item in self._live:
            item.cancelled = True
            self._cancel(item)
        if not self._live:
            self._loop.stop()  # else the last coroutine to end does

    def _cancel(self, item: WorkItem) -> None:
        task = self._live.get(item)
        # One that has not begun sees for itself that it was cancelled: asyncio would end it without running a line.
        if task is not None and item.handle is self:
            task.cancel()

    # The selector calls these two on this thread, around its sleep.

    def park(self) -> bool:
        """About to sleep: whether it may. False where the queue has something for this loop."""
        if self._stopping or len(self._live) >= self._concurrency:
            return True
        if self._queue.park(self):
            return True
        self._loop.call_soon(self._pull)
        return False

    def unpark(self) -> None:
        """Awake again."""
        self._queue.parked.pop(self, None)

    def _pull(self) -> None:
        if self._stopping or len(self._live) >= self._concurrency:
            return
        try:
            item = self._queue.items.popleft()
        except IndexError:
            return
        if self._queue.items:
            # This coroutine's first step may hold the loop: let another loop take the rest meanwhile.
            self._queue.wake_one()
        self._begin(item)
        # After the first step, which is already scheduled.
        self._loop.call_soon(self._pull)

    def _begin(self, item: WorkItem) -> None:
        if item.cancelled:
            self._reports.finished(item, cancelled_outcome(self._place))
            return
        context = item.context or contextvars.Context()
        if item.origin is not None:
            enter(item.origin, context)
        self._live[item] = context.run(self._loop.create_task, self._host(item))

    async def _host(self, item: WorkItem) -> None:
        item.handle = self
        started = time()
        self._reports.started(item, self._place, started)
        value, error = None, None
        try:
            if item.cancelled:
                raise asyncio.CancelledError
            value = await item.definition.fn(*item.args, **item.kwargs)
        except BaseException as raised:
            stopped = item.cancelled and isinstance(raised, asyncio.CancelledError)
            error = raised if stopped else task_error(item.definition.name, raised)
        del self._live[item]
        item.handle = None
        outcome = Outcome(value, error, started, time(), self._place)
        if item.origin is not None:
            outcome.spans = spans.end(item.origin)
        self._reports.finished(item, outcome)
        if self._stopping and not self._live:
            self._loop.stop()


class _ParkingSelector(selectors.DefaultSelector):
    """Tells its loop when it is about to sleep: the only moment at which a loop is known to be free."""

    def __init__(self, loop: CoroutineLoop) -> None:
        super().__init__()
        self._owner = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        if not self._owner.park():
            return super().select(0)
        try:
            return super().select(timeout)
        finally:
            self._owner.unpark()
