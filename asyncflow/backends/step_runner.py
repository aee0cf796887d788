"""Executables of an allocation, each a job step: threads that make the command and wait for it."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping

from asyncflow.backends.allocation import Allocation
from asyncflow.backends.aside import aside
from asyncflow.backends.body import enter_worker
from asyncflow.backends.contract import Place, Reporter, WorkItem
from asyncflow.backends.orphans import Family
from asyncflow.backends.steps import StepLaunch, Steps
from asyncflow.backends.worker import Runtime

_log = logging.getLogger("asyncflow")

#: Seconds beyond the grace in which steps that were cancelled are dead, even where there are hundreds and
#: SLURM is slow to answer.
_DELAY = 60.0


class StepRunner:
    """Runs executables as job steps, as many at once as it is given: its caller has counted what they hold.

    No method blocks, and all are called on one thread; reports come from others.
    """

    def __init__(self, allocation: Allocation, reporter: Reporter, *, name: str, grace: float) -> None:
        """`grace` is seconds between TERM and KILL for one that is cancelled."""
        self._name = name
        self._reporter = reporter
        self._steps = Steps(allocation)
        self._runtime = Runtime(Family(grace), launch=self._launch)
        #: None, once it is there, stays: it ends all threads.
        self._queue: queue.SimpleQueue[WorkItem | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        #: Threads that wait for an item.
        self._idle = 0
        self._lock = threading.Lock()
        #: What runs, and where: ranks by node.
        self._running: dict[WorkItem, Mapping[str, int]] = {}

    def run(self, item: WorkItem, nodes: Mapping[str, int]) -> None:
        """Run `item` on these nodes, with so many ranks on each. Its end is reported when its step has ended.

        What it needs must be free there: SLURM may hang with a step that has to wait, if it has more ranks on one node
        than on another.
        """
        self._running[item] = dict(nodes)
        self._queue.put(item)
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
            name = f"{self._name}-step-{len(self._threads)}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def cancel(self, item: WorkItem) -> None:
        """End `item`: TERM for all processes of its step, KILL after the grace."""
        item.cancelled = True
        handle = item.handle
        if handle is not None:
            handle.cancel()

    async def stop(self, grace: float) -> None:
        """Cancel what runs, wait until it is dead and reported, and end the threads."""
        family = self._runtime.family
        family.grace = min(family.grace, grace)
        for item in list(self._running):
            self.cancel(item)
        self._queue.put(None)
        if self._threads:
            await aside(lambda: self._join(grace + _DELAY), f"{self._name}-stop")
            await aside(family.disband, f"{self._name}-stop")

    def _join(self, within: float) -> None:
        deadline = time.monotonic() + within
        for thread in self._threads:  # which may still grow meanwhile
            thread.join(max(0.0, deadline - time.monotonic()))
        for thread in self._threads:
            if thread.is_alive():
                _log.warning("thread %r did not end: it is stuck in the function of an executable", thread.name)

    def _launch(self, item: WorkItem, family: Family) -> StepLaunch:
        return StepLaunch(item, family, self._steps, self._running[item])

    def _serve(self) -> None:
        enter_worker()
        while (item := self._queue.get()) is not None:
            with self._lock:
                self._idle -= 1
            self._add_waiting_thread()
            self._run(item)
            del item  # or its arguments would live until the next one comes
            with self._lock:
                self._idle += 1
        self._queue.put(None)

    def _run(self, item: WorkItem) -> None:
        place = Place(self._name, next(iter(self._running[item])))
        started = time.time()
        if not item.cancelled:
            self._reporter.started(item, place, started)
        outcome = self._runtime.call(item, place, started)
        if os.getpid() != place.pid:
            os._exit(0 if outcome.error is None else 1)  # a fork made by the item's function, which came back here
        del self._running[item]
        self._reporter.finished(item, outcome)
