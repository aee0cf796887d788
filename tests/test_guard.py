"""The loop guard: names who holds the event loop, and is silent where nobody does."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncflow import WorkflowEngine
from asyncflow.backends import NoopBackend, ThreadBackend
from asyncflow.guard import LoopGuard, start_guard
from tests.support.faked import NEVER, soon

#: Seconds for which the loop may be held in these tests, long enough for a busy machine to let its threads run.
LIMIT = 0.05


class Warned(logging.Handler):
    """What the guard says, for a test that waits until it has spoken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._spoken = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self._spoken.set()

    async def message(self) -> str:
        assert await soon(asyncio.to_thread(self._spoken.wait, NEVER / 2)), "it said nothing"
        return self.messages[0]


@pytest.fixture
def warned() -> Iterator[Warned]:
    handler = Warned()
    logging.getLogger("asyncflow").addHandler(handler)
    yield handler
    logging.getLogger("asyncflow").removeHandler(handler)


async def _hold() -> None:
    time.sleep(10 * LIMIT)


def _line_of(function: Callable[..., object]) -> str:
    code = function.__code__
    return f"{Path(__file__).name}:{code.co_firstlineno + 1}"


async def test_a_block_that_holds_the_loop_is_named_with_file_and_line(warned: Warned) -> None:
    async with WorkflowEngine.create(NoopBackend(), block_warning=LIMIT) as flow:

        @flow.block
        async def outer() -> None:
            await _hold()

        future = outer()
        await soon(future)
        message = await warned.message()
        assert "coroutine _hold" in message
        assert f"of outer ({future.uid})" in message
        assert _line_of(_hold) in message
        held = re.search(r"held the event loop for (\d+\.\d) s", message)
        assert held is not None
        assert float(held[1]) >= 8 * LIMIT
        assert len(warned.messages) == 1, "one warning, however long it was"


async def test_a_coroutine_of_the_users_own_is_named_too(warned: Warned) -> None:
    async with WorkflowEngine.create(NoopBackend(), block_warning=LIMIT):
        await asyncio.create_task(_hold(), name="mine")
        message = await warned.message()
        assert "coroutine _hold of mine" in message


async def test_a_callback_is_named_by_its_line(warned: Warned) -> None:
    async with WorkflowEngine.create(NoopBackend(), block_warning=LIMIT):

        def callback() -> None:
            time.sleep(10 * LIMIT)

        asyncio.get_running_loop().call_soon(callback)
        message = await warned.message()
        assert "a callback held" in message
        assert _line_of(callback) in message


async def test_a_function_called_by_a_coroutine_is_named_inside_it(warned: Warned) -> None:
    def compute() -> None:
        time.sleep(10 * LIMIT)

    async def outer() -> None:
        compute()

    async with WorkflowEngine.create(NoopBackend(), block_warning=LIMIT):
        await outer()
        message = await warned.message()
        assert "coroutine" in message
        assert f"inside {Path(__file__)}" in message
        assert _line_of(compute) in message


async def test_tasks_that_block_their_workers_are_no_matter_for_the_guard(warned: Warned) -> None:
    async with WorkflowEngine.create(ThreadBackend(2), block_warning=4 * LIMIT) as flow:

        @flow.function_task
        def hold() -> None:
            time.sleep(10 * LIMIT)

        @flow.function_task
        async def hold_worker() -> None:
            time.sleep(10 * LIMIT)

        await soon(asyncio.gather(hold(), hold_worker()))
    assert warned.messages == []


@pytest.mark.parametrize("limit", [None, 0.0])
async def test_the_guard_may_be_switched_off(limit: float | None) -> None:
    before = threading.active_count()
    async with WorkflowEngine.create(NoopBackend(), block_warning=limit):
        assert threading.active_count() == before


async def test_an_idle_loop_is_not_held(warned: Warned) -> None:
    stop = start_guard(asyncio.get_running_loop(), LIMIT, "test")
    await asyncio.sleep(4 * LIMIT)
    stop()
    assert warned.messages == []


async def test_the_guards_thread_ends_with_its_engine() -> None:
    async with WorkflowEngine.create(NoopBackend(), uid="mine"):
        assert "mine-guard" in [thread.name for thread in threading.enumerate()]
    assert "mine-guard" not in [thread.name for thread in threading.enumerate()]


def test_the_guard_of_a_loop_that_was_just_closed_ends() -> None:
    loop = asyncio.new_event_loop()

    async def start() -> None:
        start_guard(loop, LIMIT, "orphaned")

    loop.run_until_complete(start())
    [thread] = [thread for thread in threading.enumerate() if thread.name == "orphaned-guard"]
    loop.close()
    thread.join(30)
    assert not thread.is_alive()


async def test_a_guard_that_is_stopped_while_it_asks_ends() -> None:
    guard = LoopGuard(asyncio.get_running_loop(), LIMIT, "stopped")

    class StoppedJustNow(threading.Event):
        """Is cleared for the next question just after the guard was stopped."""

        def clear(self) -> None:
            guard._stopped.set()
            self.set()
            super().clear()

    guard._alive = StoppedJustNow()
    guard.start()
    guard._thread.join(5)  # on the loop, as `stop` does: nothing else can answer the guard
    ended = not guard._thread.is_alive()
    threading.Event.set(guard._alive)
    assert ended
