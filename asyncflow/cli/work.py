"""What a replayed task does. A module of its own, which worker processes import."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

#: Set when the replay was interrupted: a thread in a plain sleep could not be ended before its time.
_hurry = threading.Event()


def hurry() -> None:
    """Let every task on a thread of this process return at once, from now on."""
    _hurry.set()


def sleep(seconds: float, _parents: Sequence[None]) -> None:
    """Last that many seconds and use no CPU; `_parents` are what its parents returned."""
    _hurry.wait(seconds)


def burn(seconds: float, _parents: Sequence[None]) -> None:
    """Use one core for that many seconds of CPU time, however long that takes."""
    # CPU time, not the clock: what shares a core with others must take longer, as real work does.
    end = time.thread_time() + seconds
    while time.thread_time() < end and not _hurry.is_set():
        for _ in range(1000):
            pass


#: What `--work` may name.
WORK: dict[str, Callable[[float, Sequence[None]], None]] = {"sleep": sleep, "burn": burn}
