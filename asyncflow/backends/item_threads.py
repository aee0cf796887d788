"""Threads for items whose number at once somebody else has limited: there is always one more."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from asyncflow.backends.aside import aside
from asyncflow.backends.body import enter_worker
from asyncflow.backends.contract import ItemReports, Place, WorkItem
from asyncflow.backends.orphans import Family
from asyncflow.backends.worker import Runtime

_log = logging.getLogger("asyncflow")

#: Seconds beyond the grace in which items that were cancelled have ended, even where there are hundreds and what runs
#: them is slow to answer.
_DELAY = 60.0


class ItemThreads:
    """Runs items at once, each on a thread, which then waits for a next one.

    No method blocks, and all are called on one thread; reports come from others.
    """

    def __init__(
        self, reports: ItemReports, execute: Callable[[WorkItem, Any], Any], *, name: str, grace: float
    ) -> None:
        """`execute` does what is to be done with what an executable's function returned."""
        self._name = name
        self._reports = reports
        self.family = Family(grace)
        self._runtime = Runtime(self.family, execute=execute)
        #: None, once it is there, stays: it ends all threads.
        self._queue: queue.SimpleQueue[tuple[WorkItem, str] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        #: Threads that wait for an item.
        self._idle = 0
        self._lock = threading.Lock()
        self._running: set[WorkItem] = set()

    def run(self, item: WorkItem, host: str) -> None:
        """Run `item`; reports will say that it ran on `host`."""
        self._running.add(item)
        self._queue.put((item, host))
        if not self._threads:
            self._add_waiting_thread()

    def _add_waiting_thread(self) -> None:
        """Have one more thread wait, if none does.

        The caller of `run` adds the first. Any other is added by one that stops waiting: to start a thread takes
        milliseconds where many are busy.
        """
        with self._lock:
            if self._idle:
                return
            self._idle = 1
            thread = threading.Thread(target=self._serve, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def cancel(self, item: WorkItem) -> None:
        """Have `item` end; reported when it has."""
        item.cancelled = True
        handle = item.handle
        if handle is not None:
            handle.cancel()

    async def stop(self, grace: float) -> None:
        """Cancel what runs, wait until it is dead and reported, and end the threads."""
        self.family.grace = min(self.family.grace, grace)
        for item in list(self._running):
            self.cancel(item)
        self._queue.put(None)
        if self._threads:
            await aside(lambda: self._join(grace + _DELAY), f"{self._name}-stop")
            await aside(self.family.disband, f"{self._name}-stop")

    def _join(self, within: float) -> None:
        deadline = time.monotonic() + within
        for thread in self._threads:  # which may still grow meanwhile
            thread.join(max(0.0, deadline - time.monotonic()))
        for thread in self._threads:
            if thread.is_alive():
                _log.warning("thread %r did not end: it is stuck in the function of an executable", thread.name)

    def _serve(self) -> None:
        enter_worker()
        while (given := self._queue.get()) is not None:
            with self._lock:
                self._idle -= 1
            self._add_waiting_thread()
            self._run(*given)
            del given  # or its arguments would live until the next one comes
            with self._lock:
                self._idle += 1
        self._queue.put(None)

    def _run(self, item: WorkItem, host: str) -> None:
        place = Place(self._name, host)
        started = time.time()
        if not item.cancelled:
            self._reports.started(item, place, started)
        outcome = self._runtime.call(item, place, started)
        if os.getpid() != place.pid:
            os._exit(0 if outcome.error is None else 1)  # a fork made by the item's function, which came back here
        self._running.discard(item)
        self._reports.finished(item, outcome)
