"""Tasks on threads of this process: the default. For I/O, executables, and NumPy that releases the GIL."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence

from asyncflow import options
from asyncflow.backends.aside import aside
from asyncflow.backends.body import cancelled_outcome, enter_worker
from asyncflow.backends.contract import CONCURRENCY, Capabilities, Kind, Outcome, Place, Reporter, WorkItem
from asyncflow.backends.coroutines import CoroutineLoop, CoroutineQueue
from asyncflow.backends.machine import resources_of
from asyncflow.backends.orphans import Family
from asyncflow.backends.resources import Ledger
from asyncflow.backends.worker import Runtime

_log = logging.getLogger("asyncflow")

#: Seconds between TERM and KILL for a cancelled executable.
GRACE = 5.0
#: Seconds that a cancelled function may still run before the log says that it cannot be stopped.
_MOMENT = 0.1


class _Holder:
    """A task that holds named resources, on its way to a worker; further cores are further workers kept idle."""

    def __init__(self, item: WorkItem) -> None:
        self.item = item
        self.released = threading.Event()


class _KeepIdle:
    """Tells one worker to stay idle until `holder`'s task has ended."""

    def __init__(self, holder: _Holder) -> None:
        self.holder = holder


class _Worker:
    """What one worker thread is doing. Only its own thread writes here."""

    __slots__ = ("item", "next", "place", "reports")

    def __init__(self, name: str) -> None:
        self.place = Place(name)
        #: What it runs.
        self.item: WorkItem | None = None
        #: Whether it is reporting an end.
        self.reports = False
        #: What became ready by its report: it goes on with that, without waking another worker.
        self.next: WorkItem | None = None


class _Here(threading.local):
    """The worker whose thread asks."""

    worker: _Worker | None = None


class ThreadBackend:
    """Own worker threads, one core each.

    `workers` defaults to the cores that this process may use; give more for tasks that mostly wait. GPUs and memory
    (MB) default to what the machine shows. Threads are daemons: one that hangs in user code does not keep the program
    alive. Coroutines run on as many further threads, each with an event loop, started when first needed.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        name: str = "threads",
        gpus: int | tuple[str, ...] | None = None,
        memory: int | None = None,
        concurrency: int = CONCURRENCY,
        grace: float = GRACE,
    ) -> None:
        """`concurrency` is coroutines a worker, `grace` seconds between TERM and KILL for a cancelled executable."""
        self.name = options.name("name", name)
        total, gpu_ids = resources_of(workers, gpus, memory)
        self._size = total.cores
        options.whole("concurrency", concurrency, 1)
        options.seconds("grace", grace)
        self.capabilities = Capabilities(
            workers=self._size,
            total=total,
            shares_memory=True,
            concurrency=self._size * concurrency,
            cancels_functions=False,
            cancels_executables=True,
            survives_worker_loss=True,
            thread_safe=True,
        )
        self._concurrency = concurrency
        self._gpus = gpu_ids
        self._grace = grace
        self._ledger_lock = threading.Lock()

    async def start(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._ledger: Ledger[WorkItem] = Ledger(self.capabilities.total, self._gpus)
        self._runtime = Runtime(Family(self._grace))
        self._here = _Here()
        self._calls: queue.SimpleQueue[WorkItem | _Holder | _KeepIdle | None] = queue.SimpleQueue()
        self._coroutines = CoroutineQueue()
        self._loops: list[CoroutineLoop] = []
        #: Looks at functions that were cancelled while they ran.
        self._doubts: dict[WorkItem, asyncio.TimerHandle] = {}
        self._threads: list[threading.Thread] = []
        self._workers: dict[str, _Worker] = {}
        self._holders: set[_Holder] = set()
        for number in range(self._size):
            name = f"{self.name}-{number}"
            worker = self._workers[name] = _Worker(name)
            thread = threading.Thread(target=self._serve, args=(worker,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def submit(self, items: Sequence[WorkItem]) -> None:
        worker = self._here.worker
        # Never past what waits already: that would be starved by a chain of its own making.
        keeps = worker is not None and worker.reports and worker.next is None and self._calls.empty()
        described = False
        for item in items:
            definition = item.definition
            if definition.shares_worker:
                self._submit_coroutine(item)
            elif definition.description is None:
                if keeps and worker is not None:
                    worker.next, keeps = item, False
                else:
                    self._calls.put(item)
            else:
                described = True
                with self._ledger_lock:
                    self._ledger.offer(item)
        if described:
            self._admit()

    def _submit_coroutine(self, item: WorkItem) -> None:
        if not self._coroutines.parked and len(self._loops) < self._size:
            try:
                self._add_loop()
            except OSError as error:  # out of file descriptors: the loops that there are must do
                if not self._loops:
                    now = time.time()
                    self._reporter.finished(item, Outcome(None, error, now, now, Place(self.name)))
                    return
        self._coroutines.put(item)

    def _add_loop(self) -> None:
        place = Place(f"{self.name}-loop-{len(self._loops)}")
        loop = CoroutineLoop(self._coroutines, self._reporter, place, self._concurrency)
        self._loops.append(loop)
        loop.thread.start()

    def _admit(self) -> None:
        with self._ledger_lock:
            for item in self._ledger.admit():
                holder = _Holder(item)
                self._holders.add(holder)
                # The queue is first in, first out: the further workers are idle before the task begins.
                for _ in range(item.definition.request.cores - 1):
                    self._calls.put(_KeepIdle(holder))
                self._calls.put(holder)

    def _release(self, holder: _Holder) -> None:
        with self._ledger_lock:
            self._ledger.release(holder.item)
            self._holders.discard(holder)
        holder.released.set()
        self._admit()

    def cancel(self, item: WorkItem) -> None:
        item.cancelled = True
        with self._ledger_lock:
            queued = item.definition.description is not None and self._ledger.withdraw(item)
        if queued:
            self._reporter.finished(item, cancelled_outcome(Place(self.name)))
        elif isinstance(item.handle, CoroutineLoop):
            item.handle.cancel(item)
        elif item.handle is not None:
            item.handle.cancel()
        elif item.definition.kind is Kind.FUNCTION and self._runs(item):
            loop = asyncio.get_running_loop()
            self._doubts[item] = loop.call_later(_MOMENT, self._warn_of, item)

    def _runs(self, item: WorkItem) -> bool:
        return any(item is worker.item for worker in self._workers.values())

    def _warn_of(self, item: WorkItem) -> None:
        """Say what became of a function that was cancelled, if it still runs."""
        del self._doubts[item]
        if self._runs(item):
            _log.warning(
                "%r (%s) was cancelled, but a plain function on a thread cannot be stopped: its worker stays taken "
                "until it returns; backend 'processes' can stop one",
                item.definition.name,
                item.uid,
            )

    def _serve(self, worker: _Worker) -> None:
        enter_worker()
        self._here.worker = worker
        while (taken := self._take(worker)) is not None:
            if type(taken) is WorkItem:
                self._run(taken, worker)
            elif isinstance(taken, _KeepIdle):
                taken.holder.released.wait()
            elif isinstance(taken, _Holder):
                self._run(taken.item, worker, taken)
            del taken  # or the last item's arguments would live until the next one comes

    def _take(self, worker: _Worker) -> WorkItem | _Holder | _KeepIdle | None:
        """What the worker does next; None where the backend stops."""
        following = worker.next
        if following is None:
            return self._calls.get()
        worker.next = None
        return following

    def _run(self, item: WorkItem, worker: _Worker, holder: _Holder | None = None) -> None:
        worker.item = item
        place = worker.place
        started = time.time()
        if not item.cancelled:
            self._reporter.started(item, place, started)
        outcome = self._runtime.call(item, place, started)
        if os.getpid() != place.pid:
            os._exit(0 if outcome.error is None else 1)  # a fork made by the task, which came back here
        worker.item = None
        if holder is not None:
            self._release(holder)
        worker.reports = True
        self._reporter.finished(item, outcome)
        worker.reports = False

    async def stop(self, grace: float) -> None:
        family = self._runtime.family
        family.grace = min(family.grace, grace)
        self._drop_queued()
        for doubt in self._doubts.values():
            doubt.cancel()  # who is still stuck then is named below
        for worker in self._workers.values():
            item = worker.item
            if item is not None:
                item.cancelled = True
                if item.handle is not None:
                    item.handle.cancel()
        for loop in self._loops:
            loop.stop()
        for holder in list(self._holders):
            holder.released.set()
        for _ in self._threads:
            self._calls.put(None)
        # An executable that ignores TERM is dead only after its grace and some.
        await aside(lambda: self._join(grace + 1.0), f"{self.name}-stop")
        await aside(family.disband, f"{self.name}-stop")

    def _drop_queued(self) -> None:
        with self._ledger_lock:
            dropped = self._ledger.drain()
        with contextlib.suppress(queue.Empty):
            while True:
                taken = self._calls.get_nowait()
                if isinstance(taken, WorkItem):
                    dropped.append(taken)
                elif isinstance(taken, _Holder):
                    dropped.append(taken.item)
        with contextlib.suppress(IndexError):
            while True:
                dropped.append(self._coroutines.items.popleft())
        place = Place(self.name)
        for item in dropped:
            self._reporter.finished(item, cancelled_outcome(place))

    def _join(self, within: float) -> None:
        deadline = time.monotonic() + within
        threads = self._threads + [loop.thread for loop in self._loops]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for thread in threads:
            if thread.is_alive():
                _log.warning("thread %r did not end: it is stuck in %s", thread.name, self._occupation(thread.name))

    def _occupation(self, worker: str) -> str:
        loop = next((loop for loop in self._loops if loop.thread.name == worker), None)
        items = loop.live if loop is not None else [self._workers[worker].item]
        return ", ".join(f"{item.definition.name!r} ({item.uid})" for item in items if item) or "no task"
