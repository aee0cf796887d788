"""The program of a worker process.

The main thread runs calls, so that user code finds itself where it expects to be; a further thread carries an event
loop once there are coroutines; a reader thread takes what the pool sends, and ends the process when the pool is gone.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

from asyncflow.backends import payload
from asyncflow.backends.contract import Definition, Kind, Outcome, Place, WorkItem
from asyncflow.backends.orphans import Family
from asyncflow.backends.processes.channel import Channel, Message, Segment
from asyncflow.backends.worker import CoroutineLoop, CoroutineQueue, Runtime, cancelled_outcome, enter_worker


def main(descriptor: int, worker: str, session: str, grace: float, concurrency: int) -> None:
    """Serve the pool at the other end of the socket `descriptor` until it says stop."""
    # Ctrl-C in a terminal is for the engine, which ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    _Child(Channel(sock), Place(worker), Family(grace, session), concurrency).serve()


class _Function:
    """A definition as the pool sent it; its function is unpickled at its first call."""

    def __init__(self, definition: Definition, data: Segment) -> None:
        self._definition = definition
        self._data: Segment | None = data
        self._lock = threading.Lock()

    @property
    def kind(self) -> Kind:
        return self._definition.kind

    @property
    def shares_worker(self) -> bool:
        return self._definition.shares_worker

    @property
    def name(self) -> str:
        return self._definition.name

    def definition(self) -> Definition:
        """With its function; raises NotPicklableError where that cannot be loaded."""
        with self._lock:
            if self._data is not None:
                self._definition.fn = payload.load_function(self.name, self._data)
                self._data = None
        return self._definition


class _Arrival:
    """A call as the pool sent it."""

    def __init__(self, key: int, function: _Function, about: tuple[Any, ...], segments: Any) -> None:
        self.key = key
        self.function = function
        self._about = about
        self._segments = segments

    def item(self) -> WorkItem:
        """Unpickled; raises NotPicklableError."""
        args, kwargs = payload.unpack_arguments(self.function.name, self._segments)
        self._segments = ()
        return self._filled(WorkItem(self.function.definition(), args, kwargs))

    def coroutine(self) -> WorkItem:
        """An item whose coroutine does the unpickling, on its loop."""

        async def unpickle_and_run() -> Any:
            args, kwargs = payload.unpack_arguments(self.function.name, self._segments)
            self._segments = ()
            return await self.function.definition().fn(*args, **kwargs)

        definition = Definition(unpickle_and_run, Kind.FUNCTION, self.function.name, is_async=True)
        return self._filled(WorkItem(definition, (), {}))

    def _filled(self, item: WorkItem) -> WorkItem:
        item.uid, item.attempt, item.directory, item.gpus = self._about
        item.component = self.key
        return item


class _CreditedQueue(CoroutineQueue):
    """Tells the pool when the loop has nothing more to begin: only then does it send further coroutines."""

    def __init__(self, child: _Child) -> None:
        super().__init__()
        self._child = child
        #: Whether the pool has sent something since it was last told.
        self.owed = False

    def park(self, loop: CoroutineLoop) -> bool:
        sleeps = super().park(loop)
        if sleeps and self.owed:
            self.owed = False
            self._child.send("free")
        return sleeps


class _Child:
    """One worker process."""

    def __init__(self, channel: Channel, place: Place, family: Family, concurrency: int) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self._place = place
        self._family = family
        self._concurrency = concurrency
        self._runtime = Runtime(family, owns_environment=True)
        self._functions: dict[int, _Function] = {}
        self._calls: queue.SimpleQueue[_Arrival | None] = queue.SimpleQueue()
        self._coroutines = _CreditedQueue(self)
        self._loop: CoroutineLoop | None = None
        #: Items that have not ended, by key.
        self._items: dict[int, WorkItem] = {}
        self._cancelled: set[int] = set()

    def serve(self) -> None:
        """Run calls until the pool says stop."""
        enter_worker()
        threading.Thread(target=self._read, name="asyncflow-reader", daemon=True).start()
        self.send("hello")
        while (arrival := self._calls.get()) is not None:
            self._run(arrival)
            del arrival
        if self._loop is not None:
            self._loop.stop()
            self._loop.thread.join()
        _flush_output()

    def _run(self, arrival: _Arrival) -> None:
        try:
            item = arrival.item()
        except Exception as error:
            self._finished(arrival.key, _failed(error, self._place))
            return
        self._items[arrival.key] = item
        if arrival.key in self._cancelled:
            item.cancelled = True
        outcome = self._runtime.call(item, self._place)
        _flush_output()
        self._finished(arrival.key, outcome)

    # --- the pool's words, on the reader thread ----------------------------------------------------------------------

    def _read(self) -> None:
        while True:
            try:
                messages = self._channel.receive()
            except (EOFError, OSError):
                # The engine is gone. Its guardian ends what this process started.
                os._exit(1)
            for message in messages:
                self._heed(message)

    def _heed(self, message: Message) -> None:
        verb, data, segments = message
        if verb == "define":
            number, definition = data
            self._functions[number] = _Function(definition, segments[0])
        elif verb == "run":
            self._take(data, segments)
        elif verb == "cancel":
            self._cancel(data[0])
        elif verb == "forget":
            self._functions.pop(data[0], None)
        elif verb == "stop":
            self._stop(data[0])

    def _take(self, data: tuple[Any, ...], segments: Any) -> None:
        key, number, *about = data
        arrival = _Arrival(key, self._functions[number], tuple(about), segments)
        if not arrival.function.shares_worker:
            self._calls.put(arrival)
            return
        if self._loop is None:
            self._loop = CoroutineLoop(self._coroutines, self, self._place, self._concurrency)
            self._loop.thread.start()
        item = self._items[key] = arrival.coroutine()
        self._coroutines.owed = True
        self._coroutines.put(item)

    def _cancel(self, key: int) -> None:
        self._cancelled.add(key)
        item = self._items.get(key)
        if item is not None:
            item.cancelled = True
            if isinstance(item.handle, CoroutineLoop):
                item.handle.cancel(item)
            elif item.handle is not None:
                item.handle.cancel()

    def _stop(self, grace: float) -> None:
        self._family.grace = grace
        for key in list(self._items):
            self._cancel(key)
        self._calls.put(None)

    # --- reports -----------------------------------------------------------------------------------------------------

    def started(self, item: WorkItem, place: Place, time: float) -> None:
        """A coroutine begins."""
        self.send("started", (item.component, time))

    def finished(self, item: WorkItem, outcome: Outcome) -> None:
        """A coroutine has ended."""
        self._finished(item.component, outcome)

    def _finished(self, key: int, outcome: Outcome) -> None:
        item = self._items.pop(key, None)
        self._cancelled.discard(key)
        name = item.definition.name if item is not None else "a task"
        error = outcome.error
        segments: Sequence[Segment] = ()
        if error is None:
            try:
                segments = payload.pack_result(name, outcome.value)
            except Exception as unpicklable:
                error = unpicklable
        if error is not None:
            segments = [payload.dump_error(name, error)]
        self.send("finished", (key, error is not None, outcome.started, outcome.ended), segments)

    def send(self, verb: str, data: tuple[Any, ...] = (), segments: Sequence[Segment] = ()) -> None:
        """Tell the pool; from any thread."""
        with self._sending:
            self._channel.post(verb, data, segments)
            self._channel.flush()


def _failed(error: BaseException, place: Place) -> Outcome:
    outcome = cancelled_outcome(place)
    outcome.error = error
    return outcome


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # user code closed it, or nobody reads it any more
            continue
