"""The way from what was noted to all who show it: one thread that looks ten times a second, while there is something.

`note` and `post` are what the hot path and others call; they append to a queue and at most wake a thread.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from time import time

from asyncflow.backends.contract import HostFigures
from asyncflow.component import Component
from asyncflow.telemetry.batch import Batch
from asyncflow.telemetry.consumer import Consumer
from asyncflow.telemetry.lines import Lines
from asyncflow.telemetry.record import PastAttempt, Record, Shown

_log = logging.getLogger("asyncflow")

#: Seconds from the first thing that is new to the look that finds it.
INTERVAL = 0.1
#: Records of one batch; fresh memory costs more than what is done with it, so batches are small.
_MOST = 256


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

    def close(self) -> None:
        """Hand on what is there, and end the thread."""
        self._closed = True
        self._now.set()
        self._wake.set()
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
            emit = time()
            for _ in range(min(len(self._others), _MOST)):
                self._others.popleft()(batch)
            for _ in range(min(len(self._queue), _MOST)):
                self._show(self._queue.popleft(), emit, batch)
            self._count(batch)
            for consumer in self._consumers:
                consumer.offer(batch)

    def _show(self, component: Component, emit: float, batch: Batch) -> None:
        component.waiting = False
        try:
            over = component.over  # before anything else: whatever is over has all its times
            if component.past is not None:
                self._show_past(component.past, emit, batch)
                component.past = None
            if component.shown == Shown.ALL:
                return
            self._add_lines(component, over, emit, batch)
            if over:
                component.shown = Shown.ALL
                batch.ended.append(component)
            elif component.started is not None and not component.seen_running:
                component.seen_running = True
                batch.started.append(component)
        except Exception:
            _log.exception("telemetry could not tell of %s", component.uid)

    def _show_past(self, attempts: list[PastAttempt], emit: float, batch: Batch) -> None:
        for past in attempts:
            self._add_lines(past, True, emit, batch)
            batch.retried.append(past)

    def _add_lines(self, record: Record, over: bool, emit: float, batch: Batch) -> None:
        if self.wants_lines:
            lines = self._lines.component(record, over, emit)
            if lines:
                batch.lines.append(lines)
