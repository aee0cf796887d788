"""Where a task's body runs, and what becomes of what it raises."""

from __future__ import annotations

import asyncio
import threading
from time import time

from asyncflow.backends.contract import Outcome, Place
from asyncflow.errors import LoopBoundError, TaskExitError

#: Exceptions that a future cannot carry, or that would end the program if a block let them out.
_EXITS = (StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)

_here = threading.local()


def on_worker() -> bool:
    """Whether this thread is running a task's body."""
    return getattr(_here, "working", False)


def enter_worker() -> None:
    """Mark this thread as a worker's."""
    _here.working = True


def leave_worker() -> None:
    """Mark this thread as its owner's again."""
    _here.working = False


def task_error(name: str, error: BaseException) -> BaseException:
    """The error that the task's future gets for what its code raised."""
    if not isinstance(error, Exception) or isinstance(error, _EXITS):
        return TaskExitError(name, error)
    # asyncio has no type of its own for this; its two texts are the only sign.
    if type(error) is RuntimeError and ("different loop" in str(error) or "different event loop" in str(error)):
        found = LoopBoundError(name, str(error))
        found.__cause__ = error
        return found
    if error.__traceback__ is not None:
        # The first frame is the runtime's; the user's traceback begins in the user's function.
        error.__traceback__ = error.__traceback__.tb_next
    return error


def cancelled_outcome(place: Place) -> Outcome:
    """The end of an item that was cancelled before it began."""
    now = time()
    return Outcome(None, asyncio.CancelledError(), now, now, place)


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what the user's code left on a worker's loop, and close it."""
    leftover = asyncio.all_tasks(loop)
    for task in leftover:
        task.cancel()
    if leftover:
        loop.run_until_complete(asyncio.gather(*leftover, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
