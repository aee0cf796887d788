"""Whether a pilot is alive, which RADICAL-Pilot does not tell: a dead executor looks like long tasks.

While tasks are out, one that ends at once is sent now and then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

#: Seconds between two looks.
_BEAT = 10.0
#: Seconds that such a task may take where nothing else is heard of the executor either.
_DEADLINE = 25.0


class Pulse:
    """Watches one pilot. On the loop of the process that holds it."""

    def __init__(self, probe: Callable[[], str], *, beat: float = _BEAT, deadline: float = _DEADLINE) -> None:
        """`probe` submits a task that ends at once, and gives its uid."""
        self._probe = probe
        self._beat = beat
        self._deadline = deadline
        #: The tasks that are out.
        self._out: set[str] = set()
        self._probing: str | None = None
        self._heard = 0.0

    def sent(self, uid: str) -> None:
        """A task was submitted."""
        self._out.add(uid)

    def heard(self, uid: str, ended: bool) -> bool:
        """The executor has done something about a task; whether that was one of these, which has ended."""
        self._heard = time.monotonic()
        if not ended:
            return False
        self._out.discard(uid)
        if uid != self._probing:
            return False
        self._probing = None
        return True

    async def stops(self) -> None:
        """Return when there is none any more."""
        while True:
            await asyncio.sleep(self._beat)
            if self._probing is not None:
                if time.monotonic() - self._heard > self._deadline:
                    return
            elif self._out:
                self._heard = time.monotonic()
                self._probing = self._probe()
