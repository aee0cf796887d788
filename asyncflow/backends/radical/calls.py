"""The thread on which RADICAL-Pilot is called: its calls block, and are not meant for several at once."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("asyncflow")


class Calls:
    """Calls in their order, each handed over from the event loop."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="radical", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._calls.get()()

    def soon(self, call: Callable[[], None], failed: Callable[[str], None]) -> None:
        """Have it called; `failed` is called on the loop where that raises."""
        loop = asyncio.get_running_loop()

        def guarded() -> None:
            try:
                call()
            except Exception as error:
                _log.exception("RADICAL-Pilot refused a call")
                loop.call_soon_threadsafe(failed, f"RADICAL-Pilot refused a call: {type(error).__name__}: {error}")

        self._calls.put(guarded)

    async def done(self, call: Callable[[], Any]) -> Any:
        """What it gives, or raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if not future.done():
                future.set_exception(error) if error is not None else future.set_result(value)

        def guarded() -> None:
            try:
                value, error = call(), None
            except BaseException as raised:
                value, error = None, raised if isinstance(raised, Exception) else RuntimeError(repr(raised))
            loop.call_soon_threadsafe(settle, value, error)

        self._calls.put(guarded)
        return await future
