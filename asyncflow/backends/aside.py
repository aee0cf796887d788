"""Blocking calls beside the event loop, each on a thread that ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, cast

R = TypeVar("R")


async def aside(function: Callable[[], R], name: str = "asyncflow-aside") -> R:
    """Run a blocking `function` on a thread of its own and await it.

    Not `asyncio.to_thread`: its pool's threads stay until the loop closes, and shutdown promises to leave none.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(value: R | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast("R", value))  # which may be None itself

    def work() -> None:
        value, error = None, None
        try:
            value = function()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(settle, value, error)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        return await future
    finally:
        if future.done() and not future.cancelled():
            thread.join()  # it has delivered: what is left of it takes no time
