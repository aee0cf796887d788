"""What TERM means to a script under `asyncflow run`: many batch systems send nothing else before they kill."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from asyncflow.cli.failure import OUT_OF_TIME
from asyncflow.engine import open_engines

#: Seconds within which a second TERM is the first one over again: some batch systems send it to a program, and to the
#: launcher that hands it on to the same program.
_ECHO = 1.0


class Termination:
    """`with`: TERM lets the open engines end within `grace` seconds; a second one ends the process, as without this.

    A script without an open engine is left by SystemExit, and one that takes longer than `grace` is not waited for.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        #: What a script without an engine was left by.
        self.exit: SystemExit | None = None
        self._came: float | None = None
        self._before: Any = signal.SIG_DFL
        #: Signals that were blocked before a fork.
        self._blocked: set[int] = set()

    def __enter__(self) -> Termination:
        here = threading.current_thread() is threading.main_thread()
        # Who has TERM ignored wants it ignored.
        if here and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            before = signal.signal(signal.SIGTERM, self._on_term)
            self._before = signal.SIG_DFL if before is None else before  # None is one that Python did not set
            os.register_at_fork(before=self._hold, after_in_parent=self._release, after_in_child=self._give_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_set():
            signal.signal(signal.SIGTERM, self._before)

    def _is_set(self) -> bool:
        """Whether TERM still comes here; the script may have set a handler of its own."""
        return signal.getsignal(signal.SIGTERM) == self._on_term

    # A process that the script forks is to die of TERM, by which its parent ends it, even of one that comes at once:
    # Python forgets, in the child, what has come and not yet been handled.

    def _hold(self) -> None:
        if self._is_set():
            self._blocked = set(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}))

    def _release(self) -> None:
        if self._is_set():
            signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)

    def _give_up(self) -> None:
        if self._is_set():
            signal.signal(signal.SIGTERM, self._before)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)

    def _on_term(self, number: int, _: FrameType | None) -> None:
        if self._came is None:
            self._came = time.monotonic()
            self._begin()
        elif time.monotonic() - self._came >= _ECHO:
            _end_by(number)

    def _begin(self) -> None:
        exit_within(self._grace, f"the script did not end within {self._grace:g} s of TERM")
        engines = open_engines()
        for engine in engines:
            engine.end_within(self._grace)
        if not engines:
            self.exit = SystemExit(OUT_OF_TIME)
            raise self.exit


def _end_by(number: int) -> None:
    """Die of a signal as if there were no handler."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def exit_within(seconds: float, why: str | None = None) -> None:
    """End the process so many seconds from now, if it is still there: not every thread lets Python exit."""

    def leave() -> None:
        time.sleep(max(0.0, seconds))
        if why is not None:
            os.write(2, f"asyncflow: {why}\n".encode())
        os._exit(OUT_OF_TIME)

    # Not a threading.Thread: to start one takes locks, which the code that a signal interrupted may hold.
    _thread.start_new_thread(leave, ())
