"""The program of a worker process.

The main thread runs calls, so that user code finds itself where it expects to be; a further thread carries an event
loop once there are coroutines. The main thread reads the work for itself, for a thread between would cost more than a
short call; a control thread hears what must be heard while a call runs, and ends the process when the pool is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Sequence
from time import time
from typing import Any

from asyncflow.backends import payload
from asyncflow.backends.body import cancelled_outcome, enter_worker
from asyncflow.backends.contract import Definition, Kind, Origin, Outcome, Place, WorkItem
from asyncflow.backends.coroutines import CoroutineLoop, CoroutineQueue
from asyncflow.backends.origin import spans
from asyncflow.backends.orphans import Family
from asyncflow.backends.payload import Segment
from asyncflow.backends.processes.channel import Channel, Message
from asyncflow.backends.processes.progress import Progress
from asyncflow.backends.worker import Runtime

#: Results of these types travel in the message itself: the common small ones, and none that needs a pickle of its own.
_SMALL = frozenset({int, float, bool, type(None)})


def main(work: int, control: int, progress: int, worker: str, session: str, grace: float, concurrency: int) -> None:
    """Serve the pool at the other ends of the sockets `work` and `control` until it says stop."""
    # Ctrl-C in a terminal is for the engine, which ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Whole lines, under PYTHONUNBUFFERED too, as many containers set it: or those of several workers get mixed.
            stream.reconfigure(line_buffering=True, write_through=False)
    spans.work_apart()
    with os.fdopen(progress):
        shared = Progress(progress)
    _Child(_channel(work), _channel(control), shared, Place(worker), Family(grace, session), concurrency).serve()


def _channel(descriptor: int) -> Channel:
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    return Channel(sock)


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

    def __init__(self, key: int, function: _Function, args: Any, about: tuple[Any, ...], segments: Any) -> None:
        self.key = key
        self.function = function
        #: Small arguments as they are; None where they are pickled in the segments.
        self._args = args
        self._about = about
        self._segments = segments

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._args is not None:
            return self._args, {}
        segments, self._segments = self._segments, ()
        counts = self._about[4]
        given, end = {}, len(segments)
        for name, count in reversed(counts):
            given[name] = segments[end - count : end]
            end -= count
        return payload.unpack_arguments(self.function.name, segments[:end], given)

    def item(self) -> WorkItem:
        """Unpickled; raises NotPicklableError."""
        args, kwargs = self._arguments()
        return self._item(self.function.definition(), args, kwargs)

    def coroutine(self) -> WorkItem:
        """An item whose coroutine does the unpickling, on its loop."""

        async def unpickle_and_run() -> Any:
            args, kwargs = self._arguments()
            function = self.function.definition().fn
            if item.origin is not None:
                spans.begin(item.origin)
            return await function(*args, **kwargs)

        definition = Definition(unpickle_and_run, Kind.FUNCTION, self.function.name, is_async=True)
        item = self._item(definition, (), {})
        return item

    def _item(self, definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> WorkItem:
        uid, attempt, directory, gpus, _, *origin = self._about
        item = WorkItem(definition, args, kwargs, uid=uid, attempt=attempt)
        item.directory, item.gpus, item.component = directory, gpus, self.key
        if origin:
            item.origin = Origin(*origin[0])
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

    def __init__(
        self,
        channel: Channel,
        control: Channel,
        progress: Progress,
        place: Place,
        family: Family,
        concurrency: int,
    ) -> None:
        self._channel = channel
        self._control = control
        #: Held by the thread that reads the work channel: the main thread while it has nothing to run.
        self._receiving = threading.Lock()
        self._progress = progress
        self._sending = threading.Lock()
        self._place = place
        self._family = family
        self._concurrency = concurrency
        self._runtime = Runtime(family, owns_environment=True)
        self._functions: dict[int, _Function] = {}
        self._calls: deque[_Arrival | None] = deque()
        self._coroutines = _CreditedQueue(self)
        self._loop: CoroutineLoop | None = None
        #: Items that have not ended, by key.
        self._items: dict[int, WorkItem] = {}
        self._cancelled: set[int] = set()

    def serve(self) -> None:
        """Run calls until the pool says stop."""
        enter_worker()
        threading.Thread(target=self._read_control, name="asyncflow-control", daemon=True).start()
        self.send("hello")
        while (arrival := self._next_call()) is not None:
            self._run(arrival)
            del arrival
        if self._loop is not None:
            self._loop.stop()
            self._loop.thread.join()
        _flush_output()

    def _next_call(self) -> _Arrival | None:
        """The next call; None when the pool says stop."""
        while True:
            # Taken back by the control thread between a look and a pop, it would not be there.
            with contextlib.suppress(IndexError):
                return self._calls.popleft()
            with self._receiving:
                self._receive()

    def _receive(self) -> None:
        for message in _received(self._channel):
            self._heed(message)

    def _run(self, arrival: _Arrival) -> None:
        key = arrival.key
        self._progress.begin(key)
        try:
            item = arrival.item()
        except Exception as error:
            self._finished(key, arrival.function.name, _failed(error, self._place))
        else:
            self._items[key] = item
            if key in self._cancelled:
                item.cancelled = True
            outcome = self._runtime.call(item, self._place, time())
            del self._items[key]
            self._finished(key, item.definition.name, outcome)
        self._progress.end(key)
        # Before the next call begins: should that one end this process, the outcome must not be lost with it.
        self._flush()

    # --- the pool's words --------------------------------------------------------------------------------------------

    def _heed(self, message: Message) -> None:
        """What comes on the work channel, in its order."""
        verb, data, segments = message
        if verb == "run":
            self._take(data, segments)
        elif verb == "define":
            number, definition = data
            self._functions[number] = _Function(definition, segments[0])
        elif verb == "forget":
            self._functions.pop(data[0], None)
        elif verb == "stop":
            self._calls.append(None)

    def _read_control(self) -> None:
        """What must be heard while the main thread is in a call."""
        while True:
            for verb, data, _ in _received(self._control):
                if verb == "cancel":
                    self._cancel(data[0])
                elif verb == "recall":
                    self._give_back()
                elif verb == "end":
                    self._end_all(data[0])

    def _take(self, data: tuple[Any, ...], segments: Any) -> None:
        key, number, args, *about = data
        arrival = _Arrival(key, self._functions[number], args, tuple(about), segments)
        if not arrival.function.shares_worker:
            self._calls.append(arrival)
            return
        if self._loop is None:
            self._loop = CoroutineLoop(self._coroutines, self, self._place, self._concurrency)
            self._loop.thread.start()
        item = self._items[key] = arrival.coroutine()
        self._coroutines.owed = True
        self._coroutines.put(item)

    def _give_back(self) -> None:
        """Return what has not begun."""
        # Else the main thread reads, so it has nothing to run and nothing waits for it.
        if self._receiving.acquire(blocking=False):
            try:
                while self._channel.pending():
                    self._receive()
            finally:
                self._receiving.release()
        keys = []
        with contextlib.suppress(IndexError):
            while True:
                arrival = self._calls.popleft()
                if arrival is None:
                    self._calls.append(None)
                    break
                keys.append(arrival.key)
        with contextlib.suppress(IndexError):
            while True:
                key = self._coroutines.items.popleft().component
                del self._items[key]
                keys.append(key)
        self._cancelled.difference_update(keys)
        self.send("returned", (keys,))

    def _cancel(self, key: int) -> None:
        self._cancelled.add(key)
        item = self._items.get(key)
        if item is None:
            return
        item.cancelled = True
        if isinstance(item.handle, CoroutineLoop):
            item.handle.cancel(item)
        elif item.handle is not None:
            item.handle.cancel()
        elif self._progress.current == key and item.definition.kind is Kind.FUNCTION:
            # A plain function that began after the pool had looked. Nothing else ends it.
            self._flush()
            os.killpg(0, signal.SIGKILL)

    def _end_all(self, grace: float) -> None:
        """End what runs, politely for `grace` seconds: the engine shuts down."""
        self._family.grace = grace
        for key in list(self._items):
            self._cancel(key)

    # --- reports -----------------------------------------------------------------------------------------------------

    def started(self, item: WorkItem, place: Place, time: float) -> None:
        """A coroutine begins."""
        self.send("started", (item.component, time))

    def finished(self, item: WorkItem, outcome: Outcome) -> None:
        """A coroutine has ended."""
        del self._items[item.component]
        self._finished(item.component, item.definition.name, outcome)
        if not self._coroutines.items:
            self._flush()

    def _finished(self, key: int, name: str, outcome: Outcome) -> None:
        if os.getpid() != self._place.pid:
            os._exit(
                0 if outcome.error is None else 1
            )  # a fork made by the task, which came back here: not this worker
        self._cancelled.discard(key)
        value, error = outcome.value, outcome.error
        segments: Sequence[Segment] = ()
        if error is None and type(value) not in _SMALL:
            try:
                segments, value = payload.pack_result(name, value), None
            except Exception as unpicklable:
                error = unpicklable
        if error is not None:
            segments, value = [payload.dump_error(name, error)], None
        with self._sending:
            data: tuple[Any, ...] = key, error is not None, outcome.started, outcome.ended, value
            if outcome.spans is not None:
                data = (*data, outcome.spans)
            self._channel.post("finished", data, segments)

    def _flush(self) -> None:
        _flush_output()
        with self._sending:
            self._channel.flush()

    def send(self, verb: str, data: tuple[Any, ...] = (), segments: Sequence[Segment] = ()) -> None:
        """Tell the pool; from any thread."""
        with self._sending:
            self._channel.post(verb, data, segments)
            self._channel.flush()


def _received(channel: Channel) -> list[Message]:
    try:
        return channel.receive()
    except (EOFError, OSError):
        # The engine is gone. Its guardian ends what this process started.
        os._exit(1)


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
