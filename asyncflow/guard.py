"""The loop guard: names who holds the event loop for too long.

A thread asks the loop for a sign of life four times within the limit. Where none comes it looks at the loop thread's
stack, once, and when the loop is free again it logs how long that took.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import NamedTuple

_log = logging.getLogger("asyncflow")

#: Who held the loop, where, and for how many seconds.
Tell = Callable[[str, str, float], None]


class LoopGuard:
    """Watches one event loop from `start` to `stop`, both called on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: float, name: str, tell: Tell | None = None) -> None:
        """`limit` is seconds that a callback may hold the loop unnamed; `tell` is called on the guard's thread."""
        self._loop = loop
        self._limit = limit
        self._tell = tell
        self._thread_id = threading.get_ident()
        self._alive = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"{name}-guard", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends within a quarter of the limit; does not wait for it."""
        self._stopped.set()
        self._alive.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = self._limit / 4
        last_seen = monotonic()
        while not self._stopped.wait(pause):
            self._alive.clear()
            # Looked at after clearing: `stop` sets this first, so one of the two is always seen.
            if self._stopped.is_set():
                return
            try:
                self._loop.call_soon_threadsafe(self._alive.set)
            except RuntimeError:  # closed without a shutdown
                return
            # Asked `pause` after the last sign: silence for the rest of the limit is silence for all of it.
            if self._alive.wait(self._limit - pause):
                last_seen = monotonic()
                continue
            culprit = self._culprit()
            self._alive.wait()
            if culprit is not None and not self._stopped.is_set():
                seconds = monotonic() - last_seen
                _log.warning(
                    "%s held the event loop for %.1f s at %s; nothing else ran meanwhile: make the blocking part a "
                    "task, which runs on a worker",
                    culprit.who,
                    seconds,
                    culprit.where,
                )
                if self._tell is not None:
                    self._tell(culprit.who, culprit.where, seconds)
            last_seen = monotonic()

    def _culprit(self) -> Culprit | None:
        frame = sys._current_frames().get(self._thread_id)
        if frame is None or _asleep(frame):
            return None
        return _describe(frame, _task_name(self._loop))


def _asleep(frame: FrameType) -> bool:
    """Whether the loop is in its selector: it was short of processor time, nothing held it."""
    return frame.f_code.co_name in ("select", "_poll") and "select" in frame.f_code.co_filename


def _task_name(loop: asyncio.AbstractEventLoop) -> str | None:
    task = asyncio.current_task(loop)
    return task.get_name() if task is not None else None


class Culprit(NamedTuple):
    """Who holds the loop, and where."""

    who: str
    where: str


def _describe(frame: FrameType, task: str | None) -> Culprit:
    stack = list(traceback.walk_stack(frame))  # innermost first
    innermost = stack[0][0]
    coroutine = next((f for f, _ in stack if f.f_code.co_flags & inspect.CO_COROUTINE), None)
    line = f"{innermost.f_code.co_filename}:{stack[0][1]} in {_name(innermost)}"
    if coroutine is None:
        return Culprit("a callback", line)
    own = next((number for f, number in stack if f is coroutine), 0)
    where = f"{coroutine.f_code.co_filename}:{own}"
    who = f"coroutine {_name(coroutine)}" + (f" of {task}" if task else "")
    inside = f" (inside {line})" if coroutine is not innermost else ""
    return Culprit(who, where + inside)


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return str(getattr(code, "co_qualname", code.co_name))  # co_qualname came with Python 3.11


def start_guard(
    loop: asyncio.AbstractEventLoop, limit: float | None, name: str, tell: Tell | None = None
) -> Callable[[], None]:
    """Start a guard where there is a limit; what stops it. `tell` is called when the loop is free again."""
    if not limit:
        return lambda: None
    guard = LoopGuard(loop, limit, name, tell)
    guard.start()
    return guard.stop
