"""What the measured tasks do, and how long that takes where nothing stands in its way.

The work is a fixed number of PBKDF2 iterations. They touch no memory and run without the GIL, as numerical code does;
and unlike a loop that watches the clock they never count the wait for a core as work.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from statistics import fmean, median
from typing import NamedTuple

from tests.bench.patterns import combine

#: Iterations of one measured call, some milliseconds, and of a short one that shows what the call itself costs.
_LONG, _SHORT = 5000, 10
_CALLS = 40
_TRIES = 3


def body(iterations: int, *parents: int) -> int:
    """A task: its work, then its value. Without iterations it is a no-op."""
    if iterations:
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", iterations)
    return combine(parents)


def where(seconds: float) -> tuple[int, int]:
    """Hold a worker for a while; which worker it was."""
    time.sleep(seconds)
    return os.getpid(), threading.get_ident()


class Speed(NamedTuple):
    """How fast a core works while all others work too; both in microseconds."""

    an_iteration: float
    a_call: float

    def iterations(self, microseconds: float) -> int:
        """How many iterations take about this long, at least 1."""
        return max(1, round((microseconds - self.a_call) / self.an_iteration))

    def microseconds(self, iterations: int) -> float:
        return self.a_call + self.an_iteration * iterations


def _microseconds(iterations: int) -> float:
    times = []
    for _ in range(_CALLS):
        begun = time.perf_counter()
        body(iterations)
        times.append(time.perf_counter() - begun)
    return median(times) * 1e6


def measure() -> Speed:
    """The speed of this process now."""
    long, short = _microseconds(_LONG), _microseconds(_SHORT)
    an_iteration = (long - short) / (_LONG - _SHORT)
    return Speed(an_iteration, max(0.0, short - _SHORT * an_iteration))


def calibrate(processes: int) -> Speed:
    """The speed of as many processes at once: the ideal to which an engine with as many workers is held.

    It is the fastest of a few tries: one slowed down by others would flatter all that is held to it.
    """
    return min(_at_once(processes) for _ in range(_TRIES))


def _at_once(processes: int) -> Speed:
    command = [sys.executable, "-m", __name__]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    outputs = [process.communicate()[0].split() for process in running]
    return Speed(*(fmean(map(float, column)) for column in zip(*outputs, strict=True)))


if __name__ == "__main__":
    print(*measure())
