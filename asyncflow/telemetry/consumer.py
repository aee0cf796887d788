"""A thread for each who takes what the bus hands on: who is slow is slow for itself."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from asyncflow.telemetry.batch import Batch

_log = logging.getLogger("asyncflow")

#: Bytes, about, that may wait for one consumer.
MOST = 200 << 20


class Consumer:
    """Calls `take` with each batch, in their order, on a thread of its own, until `close`."""

    def __init__(
        self, name: str, take: Callable[[Batch], None], end: Callable[[], object] | None = None, most: int = MOST
    ) -> None:
        """`name` is of the thread, and what the warnings call it; `end` is called there when all has been taken."""
        self.name = name
        self._take = take
        self._end = end
        self._most = most
        self._batches: deque[Batch] = deque()
        self._waiting = 0
        #: How many events were left out because too much waited.
        self.dropped = 0
        self._changed = threading.Condition()
        self._closed = False
        self._failed = False
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def offer(self, batch: Batch) -> None:
        """Take a batch, or leave it out where too much waits already; never blocks for long."""
        with self._changed:
            weight = batch.weight
            if self._waiting and self._waiting + weight > self._most:
                if not self.dropped:
                    most = self._most >> 20
                    _log.warning("%s is too slow: what comes while %d MB of events wait is left out", self.name, most)
                self.dropped += batch.events
                batch.taken()
                return
            self._waiting += weight
            self._batches.append(batch)
            self._changed.notify_all()

    def close(self) -> None:
        """Let the thread end once it has taken what waits; does not wait for that."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def give_up(self) -> None:
        """Let the thread end at once; what waits is dropped."""
        with self._changed:
            for batch in self._batches:
                batch.taken()
            self._batches.clear()
            self._closed = True
            self._changed.notify_all()

    def finish(self, timeout: float) -> None:
        """After `close`: wait for the thread's end; says where that does not come in time."""
        self.thread.join(timeout)
        if self.thread.is_alive():
            _log.warning("%s did not end in time: what it had not taken yet is lost", self.name)

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            self._try(partial(self._take, batch))
            with self._changed:
                self._waiting -= batch.weight
            batch.taken()
            del batch  # or it would live until the next one comes
        if self._end is not None:
            self._try(self._end)

    def _try(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException:  # a subscriber's SystemExit must not end the thread
            if not self._failed:
                self._failed = True
                _log.warning("%s failed; further failures of it are not told", self.name, exc_info=True)

    def _next(self) -> Batch | None:
        with self._changed:
            self._changed.wait_for(lambda: self._batches or self._closed)
            return self._batches.popleft() if self._batches else None
