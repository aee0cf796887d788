"""How what backends report reaches the scheduler: from any thread, in their order, at the cost of few wake-ups.

Most reports say that a plain attempt ended well. Such a *success* is worked off where it was reported: the thread that
ran the task takes the scheduler's lock, moves the graph on, hands out what became ready, and goes on to that, without
a hop to the loop and back. Everything else, and what a success leaves for the loop, waits for the loop, which is woken
once per burst.

No thread but the loop's ever waits for the lock. One that finds it taken leaves its success to the holder, who looks
for such before going on to other things. (Were workers to wait, each would hand the lock, then the GIL, to the other
after every task.)
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from asyncflow.backends.contract import HostFigures, Loss, Outcome, Place, WorkItem
from asyncflow.errors import InternalError
from asyncflow.observer import Observer

#: Reports handled in one turn of the loop: a few milliseconds' worth, so that the loop stays responsive.
_BURST = 1000
#: Where one look of the loop set this many awaited futures, it looks again by itself after some seconds, and is not
#: woken for more of them until then. Waking a thread costs as much as a short task, and takes a core from the workers.
_BUSY = 4
_LINGER = 0.0005


class Handlers(Protocol):
    """What the scheduler does about reports, each under its lock."""

    observer: Observer | None

    def on_started(self, item: WorkItem, time: float) -> None: ...
    def on_success(self, item: WorkItem, outcome: Outcome) -> None:
        """The only one that is called on any thread."""

    def on_finished(self, item: WorkItem, outcome: Outcome) -> None: ...
    def on_lost(self, item: WorkItem, loss: Loss) -> None: ...
    def on_broken(self, state: Any, reason: str) -> None: ...
    def on_resized(self, state: Any, _: None) -> None: ...
    def on_defect(self, subject: Any, error: BaseException) -> None:
        """A report about `subject` could not be handled."""

    def feed(self) -> bool:
        """After successes on any thread: hand out what can be from here; whether some is left, for the loop."""

    def undelivered(self) -> bool:
        """Whether somebody waits for the loop to set a future."""

    def flush(self) -> int:
        """After a burst on the loop: hand out what is ready, set what is awaited; how many futures."""


class Mailbox:
    """Reports that wait to be handled."""

    def __init__(self, loop: asyncio.AbstractEventLoop, handlers: Handlers) -> None:
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._handlers = handlers
        #: Guards the scheduler and the graph. Only the loop waits for it.
        self.lock = threading.RLock()
        #: How many operations of the scheduler its holder is in, one within the other.
        self.held = 0
        #: What of the user's was let go of under the lock: dropped after it, for whatever its `__del__` does.
        self.garbage: list[Any] = []
        self._successes: deque[tuple[WorkItem, Outcome]] = deque()
        self._reports: deque[tuple[Callable[[Any, Any], None], Any, Any]] = deque()
        #: Whether the loop will look here soon.
        self._woken = False
        #: Whether it will look by itself for futures to set.
        self._lingers = False

    def post(self, handler: Callable[[Any, Any], None], subject: Any, report: Any) -> None:
        """Have `handler(subject, report)` called on the loop soon."""
        self._reports.append((handler, subject, report))
        self.wake()

    def succeeded(self, item: WorkItem, outcome: Outcome) -> None:
        """An attempt that nothing but its component waits for ended well."""
        self._successes.append((item, outcome))
        if threading.get_ident() == self._loop_thread:
            self.wake()  # a backend may report from within `submit`
        else:
            self._work_off()

    def catch_up(self) -> None:
        """For whoever held the lock, afterwards: work off the successes that came meanwhile."""
        if self._successes:
            self._work_off()
        if self.garbage:
            self.garbage.clear()

    def wake(self) -> None:
        """Have the loop look at everything soon."""
        # Two threads may both wake the loop, which is harmless; neither may leave it asleep.
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody can be told any more
                self._loop.call_soon_threadsafe(self._handle)

    def _work_off(self) -> None:
        # Looked at again after each release: what came while the lock was held is nobody else's.
        while self._successes and self.lock.acquire(False):
            try:
                if self.held:  # by this very thread, which is in the middle of something and looks here after it
                    return
                self.held = 1
                try:
                    self._handle_successes()
                    if self._handlers.feed() or (not self._lingers and self._handlers.undelivered()):
                        self.wake()
                except BaseException as error:  # a defect of ours must not end the worker that met it
                    self.post(self._handlers.on_defect, None, error)
                finally:
                    self.held = 0
            finally:
                self.lock.release()
            self.garbage.clear()

    def _handle_successes(self) -> None:
        handle, successes = self._handlers.on_success, self._successes
        for _ in range(_BURST):
            if not successes:
                return
            item, outcome = successes.popleft()
            try:
                handle(item, outcome)
            except Exception as error:
                self.post(self._handlers.on_defect, item, error)

    def _handle(self) -> None:
        self._woken = False
        try:
            with self.lock:
                self.held += 1
                try:
                    self._handle_successes()
                    self._handle_reports()
                    busy = self._handlers.flush() >= _BUSY
                    if busy and not self._lingers:
                        self._lingers = True
                        self._loop.call_later(_LINGER, self._look_again)
                finally:
                    self.held -= 1
        finally:
            self.garbage.clear()
            if self._reports or self._successes:
                self.wake()

    def _look_again(self) -> None:
        self._lingers = False
        self._handle()

    def _handle_reports(self) -> None:
        reports = self._reports
        for _ in range(min(len(reports), _BURST)):
            handler, subject, report = reports.popleft()
            try:
                handler(subject, report)
            except Exception as error:
                self._handlers.on_defect(subject, error)


class MailboxReporter:
    """The `Reporter` of a backend."""

    def __init__(self, mailbox: Mailbox, handlers: Handlers, state: Any, work_dir: str) -> None:
        self.work_dir = work_dir
        self._post = mailbox.post
        self._succeeded = mailbox.succeeded
        self._handlers = handlers
        self._state = state

    def started(self, item: WorkItem, place: Place, time: float) -> None:
        item.started = time
        observer = self._handlers.observer
        if observer is not None:
            observer.started(item, place, time)
        if item.watched:
            self._post(self._handlers.on_started, item, time)

    def finished(self, item: WorkItem, outcome: Outcome) -> None:
        # The end of a watched item stops a timer of the loop, and must not overtake its start.
        if outcome.error is None and not item.watched:
            self._succeeded(item, outcome)
        else:
            self._post(self._handlers.on_finished, item, outcome)

    def lost(self, item: WorkItem, loss: Loss) -> None:
        self._post(self._handlers.on_lost, item, loss)

    def broken(self, reason: str) -> None:
        self._post(self._handlers.on_broken, self._state, reason)

    def resized(self) -> None:
        self._post(self._handlers.on_resized, self._state, None)

    def measured(self, figures: HostFigures) -> None:
        observer = self._handlers.observer
        if observer is not None:
            observer.measured(self._state.backend.name, figures)


class DirectReporter:
    """The `Reporter` of the block runner, which is on the loop already: its ends count in the same turn."""

    def __init__(self, handlers: Handlers, work_dir: str) -> None:
        self.work_dir = work_dir
        self._handlers = handlers

    def started(self, item: WorkItem, place: Place, time: float) -> None:
        item.started = time
        if self._handlers.observer is not None:
            self._handlers.observer.started(item, place, time)
        if item.watched:
            self._handlers.on_started(item, time)

    def finished(self, item: WorkItem, outcome: Outcome) -> None:
        self._handlers.on_finished(item, outcome)
        self._handlers.flush()

    def lost(self, item: WorkItem, loss: Loss) -> None:
        raise InternalError("a block cannot lose its worker")

    def broken(self, reason: str) -> None:
        raise InternalError("the block runner cannot break")

    def resized(self) -> None:
        raise InternalError("the block runner has no size")

    def measured(self, figures: HostFigures) -> None:
        raise InternalError("the block runner has no host of its own")
