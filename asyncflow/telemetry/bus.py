"""The way from what was noted to all who show it: one thread that looks five times a second, while there is something.

`note` and `post` are what the hot path and others call; they append to a queue and at most wake a thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from time import time

from asyncflow.backends.contract import HostFigures
from asyncflow.component import Component
from asyncflow.telemetry.batch import Batch
from asyncflow.telemetry.consumer import Consumer
from asyncflow.telemetry.lines import Lines
from asyncflow.telemetry.record import Shown

#: Seconds from the first thing that is new to the look that finds it.
INTERVAL = 0.2
#: Records of one batch; fresh memory costs more than what is done with it, so batches are small.
_MOST = 64


class Bus:
    """What was noted, and who is told."""

    def __init__(self, lines: Lines, count: Callable[[Batch], None]) -> None:
        """`count` is called with each batch as well: what must be quick, and right when `show_all` returns."""
        self._lines = lines
        self._count = count
        #: Whether anybody reads lines.
        self.wants_lines = False
        self._consumers: list[Consumer] = []
        #: Components with something new, each once; other things as what puts them into a batch.
        self._queue: deque[Component] = deque()
        self._others: deque[Callable[[Batch], None]] = deque()
        self._wake = threading.Event()
        #: Set by `close`, which does not want to wait for the next look.
        self._now = threading.Event()
        #: Held while something is shown; taken by whoever takes back what a component has noted.
        self.looking = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="asyncflow-telemetry", daemon=True)

    def start(self, consumers: Iterable[Consumer]) -> None:
        self._consumers = list(consumers)
        self._thread.start()

    def add(self, consumer: Consumer) -> None:
        """From the next look on."""
        self._consumers = [*self._consumers, consumer]

    def remove(self, consumer: Consumer) -> None:
        """From the next look on."""
        self._consumers = [each for each in self._consumers if each is not consumer]

    # --- any thread --------------------------------------------------------------------------------------------------

    def note(self, component: Component) -> None:
        """Something of `component` is new."""
        # Before what is new is read the bus clears this: nothing is missed, at worst something is looked at twice.
        if not component.waiting:
            component.waiting = True
            self.put(component)

    def put(self, component: Component) -> None:
        """The same where that is known to be so, and it counts as waiting."""
        self._queue.append(component)
        if not self._wake.is_set():
            self._wake.set()

    def post(self, put: Callable[[Batch], None]) -> None:
        """Have `put` called with the next batch."""
        self._others.append(put)
        self._wake.set()

    def post_line(self, line: bytes) -> None:
        """A line that is about no component."""
        self.post(lambda batch: batch.lines.append(line))

    def post_figures(self, backend: str | None, figures: HostFigures) -> None:
        self.post(lambda batch: batch.hosts.append((backend, figures)))

    def show_all(self) -> None:
        """Hand on all that was noted so far."""
        while self._queue or self._others:
            self._look()
        with self.looking:  # what another thread has taken from the queue has been handed on, too
            pass

    def close(self) -> None:
        """Hand on what is there, and end the thread."""
        self._closed = True
        self._now.set()
        self._wake.set()
        if self._thread.ident is not None:  # else it was stopped before it had been started
            self._thread.join()

    # --- its thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._now.wait(INTERVAL)
            self._wake.clear()
            self.show_all()

    def _look(self) -> None:
        batch = Batch()
        with self.looking:
            for _ in range(min(len(self._others), _MOST)):
                self._others.popleft()(batch)
            self._show([self._queue.popleft() for _ in range(min(len(self._queue), _MOST))], batch)
            self._count(batch)
            batch.takers += len(self._consumers)
            for consumer in self._consumers:
                consumer.offer(batch)
            batch.taken()

    def _show(self, components: Iterable[Component], batch: Batch) -> None:
        going: list[Component] = []
        for component in components:
            component.waiting = False
            over = component.over  # before anything else: whatever is over has all its times
            if component.past is not None:
                batch.retried += component.past
                component.past = None
            if component.shown != Shown.ALL:
                (batch.ended if over else going).append(component)
        if self.wants_lines:
            batch.lines += self._lines.of(batch.retried, batch.ended, going, time())
        for component in batch.ended:
            component.shown = Shown.ALL
        for component in going:
            if component.started is not None and not component.seen_running:
                component.seen_running = True
                batch.started.append(component)
