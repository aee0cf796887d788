"""Any `concurrent.futures.Executor` as a backend: the standard pools, loky, mpi4py.futures, and others' executors.

An executor tells neither when a call begins nor which worker has it, so the backend never gives it more than it can
run at once. Calls on executors that do not share this process's memory travel pickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from typing import Any

from asyncflow import options
from asyncflow.backends import payload
from asyncflow.backends.aside import aside
from asyncflow.backends.body import cancelled_outcome, enter_worker, leave_worker
from asyncflow.backends.contract import Capabilities, Definition, Kind, Origin, Outcome, Place, Reporter, WorkItem
from asyncflow.backends.launch import attempt_mark
from asyncflow.backends.machine import resources_of, usable_cores
from asyncflow.backends.origin import spans
from asyncflow.backends.orphans import ATTEMPT, Family, sweep
from asyncflow.backends.resources import Ledger
from asyncflow.backends.worker import Runtime
from asyncflow.errors import InvalidOptionError

_log = logging.getLogger("asyncflow")

#: Seconds between TERM and KILL for a cancelled executable.
GRACE = 5.0


class ExecutorBackend:
    """Tasks on an executor that stays the caller's to close.

    `workers` is how many calls it runs at once, where the executor does not say. `shares_memory` tells whether its
    workers are threads of this process; it is known for the standard pools.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        name: str | None = None,
        workers: int | None = None,
        shares_memory: bool | None = None,
        gpus: int | tuple[str, ...] | None = None,
        memory: int | None = None,
        grace: float = GRACE,
    ) -> None:
        if not isinstance(executor, Executor):
            raise InvalidOptionError("executor", executor, "a concurrent.futures.Executor")
        self.name = options.name("name", name or type(executor).__name__)
        resources_of(workers, gpus, memory)  # for its checks; the workers may only be known once it has started
        options.seconds("grace", grace)
        self._executor = executor
        self._workers = workers
        self._gpus = gpus
        self._memory = memory
        self._shares_memory = isinstance(executor, ThreadPoolExecutor) if shares_memory is None else shares_memory
        self._grace = grace
        self._lock = threading.RLock()
        self._out: dict[WorkItem, Future[Any]] = {}
        #: Where calls are pickled and given to an executor that needs that: never on the engine's loop.
        self._submitted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._submitter: threading.Thread | None = None

    async def start(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._runtime = Runtime(Family(self._grace))
        # Some executors answer only once their workers are up.
        workers = self._workers
        if workers is None:
            workers = await aside(functools.partial(_workers_of, self._executor))
        total, gpu_ids = resources_of(workers, self._gpus, self._memory)
        self.capabilities = Capabilities(
            workers=workers,
            total=total,
            shares_memory=self._shares_memory,
            concurrency=workers,
            cancels_functions=False,
            cancels_executables=True,
            survives_worker_loss=False,
            reports_start=False,
        )
        self._ledger: Ledger[WorkItem] = Ledger(total, gpu_ids)
        if not self._shares_memory:
            self._submitter = threading.Thread(target=self._submit_aside, name=f"{self.name}-submit", daemon=True)
            self._submitter.start()

    def submit(self, items: Sequence[WorkItem]) -> None:
        with self._lock:
            for item in items:
                self._ledger.offer(item)
        if self._submitter is None:
            self._admit()
        else:
            self._submitted.put(True)

    def _submit_aside(self) -> None:
        while self._submitted.get():
            self._admit()

    def _admit(self) -> None:
        with self._lock:
            admitted = self._ledger.admit()
        for item in admitted:
            self._start(item)

    def _start(self, item: WorkItem) -> None:
        try:
            call, arguments = self._call_of(item)
            future = self._executor.submit(call, *arguments)
        except BrokenExecutor as error:
            self._reporter.broken(f"{type(error).__name__}: {error}")
            return
        except Exception as error:
            self._end(item, _failed(error))
            return
        with self._lock:
            self._out[item] = future
        future.add_done_callback(functools.partial(self._ended, item))

    def _call_of(self, item: WorkItem) -> tuple[Any, tuple[Any, ...]]:
        if self._shares_memory:
            return self._run_here, (item,)
        if item.definition.kind is Kind.EXECUTABLE:
            self._runtime.family.guard()
        return run_pickled, (_Call(item, self._runtime.family),)

    def _run_here(self, item: WorkItem) -> Outcome:
        enter_worker()
        try:
            return self._runtime.call(item, Place(threading.current_thread().name), time.time())
        finally:
            leave_worker()

    def _ended(self, item: WorkItem, future: Future[Any]) -> None:
        with self._lock:
            self._out.pop(item, None)
        try:
            outcome = future.result()
        except CancelledError:
            outcome = cancelled_outcome(Place(self.name))
        except BrokenExecutor as error:
            # It died whole and takes nothing more: which of its tasks was to blame cannot be known.
            self._reporter.broken(f"{type(error).__name__}: {error}")
            return
        except BaseException as error:
            outcome = _failed(error)
        self._end(item, _unpickled(item, outcome) if isinstance(outcome, _PickledOutcome) else outcome)

    def _end(self, item: WorkItem, outcome: Outcome) -> None:
        with self._lock:
            self._ledger.release(item)
        self._reporter.finished(item, outcome)
        self._admit()

    def cancel(self, item: WorkItem) -> None:
        item.cancelled = True
        with self._lock:
            queued = self._ledger.withdraw(item)
            future = self._out.get(item)
        if queued:
            self._reporter.finished(item, cancelled_outcome(Place(self.name)))
        elif future is not None and not future.cancel():
            self._cancel_running(item)

    def _cancel_running(self, item: WorkItem) -> None:
        if item.handle is not None:
            item.handle.cancel()
        elif item.definition.kind is Kind.EXECUTABLE:
            # In another process, out of reach but for its mark; on another host out of reach altogether.
            family = self._runtime.family
            mark = attempt_mark(item, family)
            threading.Thread(target=sweep, args=(ATTEMPT, mark, family.grace), daemon=True).start()
        else:
            _log.warning(
                "%r (%s) was cancelled, but a function that runs on %s cannot be stopped: its worker stays taken "
                "until it returns; backend 'processes' can stop one",
                item.definition.name,
                item.uid,
                type(self._executor).__name__,
            )

    async def stop(self, grace: float) -> None:
        self._submitted.put(False)
        self._runtime.family.grace = min(self._runtime.family.grace, grace)
        with self._lock:
            dropped, running = self._ledger.drain(), list(self._out)
        for item in dropped:
            self._reporter.finished(item, cancelled_outcome(Place(self.name)))
        for item in running:
            if not item.cancelled:
                self.cancel(item)
        await aside(lambda: self._finish(grace), f"{self.name}-stop")

    def _finish(self, grace: float) -> None:
        deadline = time.monotonic() + grace + 1.0
        if self._submitter is not None:
            self._submitter.join(grace + 1.0)
        for item, future in list(self._out.items()):
            with contextlib.suppress(BaseException):
                future.exception(timeout=max(0.0, deadline - time.monotonic()))
            if not future.done():
                _log.warning("%r (%s) still runs on %s", item.definition.name, item.uid, type(self._executor).__name__)
        self._runtime.family.disband()


class LocalExecutionBackend(ExecutorBackend):
    """Tasks on an executor that the engine closes at its shutdown. May be awaited, which gives the backend itself."""

    def __await__(self) -> Generator[Any, None, LocalExecutionBackend]:
        yield from asyncio.sleep(0).__await__()
        return self

    def _finish(self, grace: float) -> None:
        super()._finish(grace)
        _end_workers_of_broken(self._executor)
        # A stuck worker must not hold up the shutdown: it has been named above.
        self._executor.shutdown(wait=not self._out)


def _end_workers_of_broken(executor: Executor) -> None:
    """Kill the workers of a broken pool of the standard library.

    It has sent them TERM and waits for all of them: one that was just starting can miss it, and is waited for for ever.
    """
    if not getattr(executor, "_broken", False):
        return
    from concurrent.futures import ProcessPoolExecutor  # slow, and rarely needed

    if isinstance(executor, ProcessPoolExecutor):
        for process in list((getattr(executor, "_processes", None) or {}).values()):
            process.kill()


def _workers_of(executor: Executor) -> int:
    for attribute in ("_max_workers", "num_workers", "max_workers"):
        workers = getattr(executor, attribute, None)
        if isinstance(workers, int) and workers > 0:
            return workers
    return usable_cores()


def _failed(error: BaseException) -> Outcome:
    now = time.time()
    return Outcome(None, error, now, now, None)


# --- on the worker of another process --------------------------------------------------------------------------------


class _Call:
    """A call as it travels."""

    #: The fields of the item's; None does not travel.
    origin: tuple[Any, ...] | None = None

    def __init__(self, item: WorkItem, family: Family) -> None:
        definition = item.definition
        self.name = definition.name
        self.kind = definition.kind
        self.description = definition.description
        self.executable = definition.executable
        self.is_async = definition.is_async
        self.function = _function_bytes(definition)
        self.arguments = payload.dump_arguments(definition, item.args, item.kwargs)
        self.uid, self.attempt, self.directory, self.gpus = item.uid, item.attempt, item.directory, item.gpus
        self.session, self.grace = family.session, family.grace
        if item.origin is not None:
            self.origin = tuple(item.origin)


@functools.lru_cache(maxsize=1000)
def _function_bytes(definition: Definition) -> bytes:
    return payload.dump_function(definition)


@functools.lru_cache(maxsize=1000)
def _function(name: str, data: bytes) -> Any:
    return payload.load_function(name, data)


class _PickledOutcome:
    """An outcome as it travels: its value or error are pickled apart, so that neither can spoil the way back."""

    #: None does not travel.
    spans: bytes | None = None

    def __init__(self, value: bytes, failed: bool, started: float, ended: float, place: Place) -> None:
        self.value, self.failed, self.started, self.ended, self.place = value, failed, started, ended, place


def run_pickled(call: _Call) -> _PickledOutcome:
    """Run a call on a worker of another process. Never raises."""
    enter_worker()
    place = Place(f"{os.getpid()}")
    started = time.time()
    ended: bytes | None = None
    try:
        definition = Definition(
            _function(call.name, call.function),
            call.kind,
            call.name,
            is_async=call.is_async,
            description=call.description,
            executable=call.executable,
        )
        args, kwargs = payload.load_arguments(call.name, call.arguments)
        item = WorkItem(definition, args, kwargs, uid=call.uid, attempt=call.attempt)
        item.directory, item.gpus = call.directory, call.gpus
        if call.origin is not None:
            item.origin = Origin(*call.origin)
            spans.work_apart()
        outcome = Runtime(Family(call.grace, call.session)).call(item, place, time.time())
        ended = outcome.spans
        if outcome.error is not None:
            raise outcome.error
        data, failed = payload.dump_result(call.name, outcome.value), False
    except BaseException as error:
        data, failed = payload.dump_error(call.name, error), True
    finally:
        leave_worker()
    pickled = _PickledOutcome(data, failed, started, time.time(), place)
    if ended is not None:
        pickled.spans = ended
    return pickled


def _unpickled(item: WorkItem, outcome: _PickledOutcome) -> Outcome:
    name = item.definition.name
    value, error = None, None
    try:
        if outcome.failed:
            error = payload.load_error(name, outcome.value)
        else:
            value = payload.load_result(name, outcome.value)
    except Exception as unreadable:
        error = unreadable
    read = Outcome(value, error, outcome.started, outcome.ended, outcome.place)
    read.spans = outcome.spans
    return read
