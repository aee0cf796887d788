"""Successes worked off by workers: the graph goes on without the loop, futures that are awaited stay the loop's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asyncflow import State, TaskFuture, WorkflowEngine
from asyncflow.backends import Backend, ProcessBackend, ThreadBackend
from asyncflow.backends.contract import Outcome, WorkItem
from asyncflow.errors import FutureNotSettableError
from asyncflow.testing.fakes import FakeBackend
from tests.support.batching import forced_batching
from tests.support.faked import NEVER, turns

BACKENDS: dict[str, Callable[[], Backend]] = {
    "threads": lambda: ThreadBackend(2),
    "processes": lambda: ProcessBackend(2),
}


@pytest.fixture(params=sorted(BACKENDS))
async def flow(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine.create(BACKENDS[request.param](), block_warning=None) as flow:
        yield flow


def add(*numbers: int) -> int:
    return sum(numbers) + 1


def no_numbers() -> list[int]:
    return []


def chain(flow: WorkflowEngine, length: int) -> list[TaskFuture[int]]:
    task = flow.function_task(add)
    futures: list[TaskFuture[int]] = [task()]
    for _ in range(length - 1):
        futures.append(task(futures[-1]))
    return futures


def hold_loop_until(condition: Callable[[], bool]) -> None:
    """Block this thread, the loop's, as user code may; there is no event of another process to wait for."""
    deadline = time.monotonic() + NEVER
    while not condition():
        assert time.monotonic() < deadline, "nothing happened while the loop was held"
        time.sleep(0.001)


async def test_the_graph_goes_on_while_the_loop_is_held(flow: WorkflowEngine) -> None:
    await flow.function_task(add)()  # the workers are up
    futures = chain(flow, 50)
    await turns()  # handed over, and nothing of the loop comes after that
    hold_loop_until(lambda: futures[-1].state is State.DONE)
    assert [await future for future in futures] == list(range(1, 51))


async def test_what_nobody_awaits_has_its_result_at_once(flow: WorkflowEngine) -> None:
    [future] = chain(flow, 1)
    await turns()  # handed over, and nothing of the loop comes after that
    hold_loop_until(future.done)
    assert future.result() == 1


async def test_what_is_awaited_is_set_on_the_loop_only(flow: WorkflowEngine) -> None:
    await flow.function_task(add)()
    futures = chain(flow, 3)
    called: list[tuple[TaskFuture[int], threading.Thread]] = []
    futures[0].add_done_callback(lambda future: called.append((future, threading.current_thread())))
    await turns()  # handed over, and nothing of the loop comes after that
    hold_loop_until(lambda: futures[2].state is State.DONE)
    # Its value has gone to the tasks that wait for it; its callbacks have not been called behind the loop's back.
    assert futures[2].result() == 3
    assert futures[0].state is State.DONE
    assert not futures[0].done()
    assert called == []
    assert await futures[0] == 1
    assert called == [(futures[0], threading.current_thread())]


async def test_a_call_may_depend_on_what_ended_and_was_not_delivered(flow: WorkflowEngine) -> None:
    [first] = chain(flow, 1)
    first.add_done_callback(lambda _: None)
    await turns()  # handed over, and nothing of the loop comes after that
    hold_loop_until(lambda: first.state is State.DONE)
    assert not first.done()
    assert await flow.function_task(add)(first) == 2
    assert await flow.function_task(sum)([first, first]) == 2


async def test_what_ended_cannot_be_cancelled_though_it_was_not_delivered(flow: WorkflowEngine) -> None:
    [future] = chain(flow, 1)
    future.add_done_callback(lambda _: None)
    await turns()  # handed over, and nothing of the loop comes after that
    hold_loop_until(lambda: future.state is State.DONE)
    assert not future.cancel()
    assert await future == 1


async def test_a_drain_waits_for_what_is_not_delivered(flow: WorkflowEngine) -> None:
    [future] = chain(flow, 1)
    future.add_done_callback(lambda _: None)
    await turns()  # handed over, and nothing of the loop comes after that
    hold_loop_until(lambda: future.state is State.DONE)
    await asyncio.wait_for(flow.drain(), NEVER)
    assert future.done()


async def test_a_shutdown_delivers_what_ended(flow: WorkflowEngine) -> None:
    [future] = chain(flow, 1)
    future.add_done_callback(lambda _: None)
    await turns()  # handed over, and nothing of the loop comes after that
    hold_loop_until(lambda: future.state is State.DONE)
    await flow.shutdown()
    assert future.result() == 1


async def test_only_its_task_sets_a_future(flow: WorkflowEngine) -> None:
    [future] = chain(flow, 1)
    with pytest.raises(FutureNotSettableError, match="of 'add'"):
        future.set_result(7)
    with pytest.raises(FutureNotSettableError):
        future.set_exception(ValueError())
    assert await future == 1


async def test_awaited_futures_are_delivered_in_the_order_of_their_ends() -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        futures = chain(flow, 100)
        order: list[int] = []
        for future in futures:
            future.add_done_callback(lambda future: order.append(future.result()))
        await asyncio.wait_for(flow.drain(), NEVER)
        await turns()
        assert order == list(range(1, 101))


async def test_a_block_made_ready_by_a_worker_runs_on_the_loop() -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:

        @flow.block
        async def here(number: int) -> threading.Thread:
            return threading.current_thread()

        assert await here(flow.function_task(add)()) is threading.current_thread()


async def test_arguments_that_cannot_be_made_on_a_worker_fail_on_the_loop() -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        unhashable = flow.function_task(no_numbers)()
        with pytest.raises(TypeError):
            await flow.function_task(len)({unhashable})


async def test_many_threads_that_report_at_once_lose_nothing() -> None:
    """Also while the loop holds the lock: whoever holds it finds what the others had to leave."""
    backend = FakeBackend(workers=1000)
    async with WorkflowEngine.create(backend, block_warning=None) as flow:
        task = flow.function_task(add)
        for _ in range(5):
            first = [task() for _ in range(400)]
            second = [task(one, other) for one, other in zip(first, reversed(first), strict=True)]
            items = await backend.submitted_items(len(first))
            with forced_batching():
                await finish_from_threads(backend, items, flow)
            assert [await future for future in first] == [1] * 400
            for item in await backend.submitted_items(len(second)):
                assert item.args == (1, 1)
                backend.finish(item, 3)
            assert await asyncio.gather(*second) == [3] * 400
            flow._scheduler.validate()


async def finish_from_threads(backend: FakeBackend, items: list[WorkItem], flow: WorkflowEngine) -> None:
    together = threading.Barrier(5)

    def finish(mine: list[WorkItem]) -> None:
        together.wait(NEVER)
        for item in mine:
            backend.finish(item, 1)

    threads = [threading.Thread(target=finish, args=(items[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    together.wait(NEVER)
    while any(thread.is_alive() for thread in threads):
        flow.cancel("none of these")  # takes the lock, and looks at every component under it
        await asyncio.sleep(0)


class Reenters:
    """A backend that ends items from within `submit`, on whichever thread hands them over."""

    def __init__(self) -> None:
        self.threads: set[threading.Thread] = set()
        self._real = ThreadBackend(1, name="reenters")
        self.capabilities = self._real.capabilities
        self.name = self._real.name

    async def start(self, reporter: Any) -> None:
        self._reporter = reporter
        await self._real.start(reporter)

    def submit(self, items: Any) -> None:
        for item in items:
            if item.args == ("start",):
                self._real.submit([item])
                continue
            self.threads.add(threading.current_thread())
            now = time.time()
            self._reporter.finished(item, Outcome(item.args[0], None, now, now, None))

    def cancel(self, item: WorkItem) -> None:
        self._real.cancel(item)

    async def stop(self, grace: float) -> None:
        await self._real.stop(grace)


async def test_a_report_from_within_a_hand_over_is_handled_after_it() -> None:
    backend = Reenters()
    async with WorkflowEngine.create(backend, block_warning=None) as flow:
        task: Any = flow.function_task(lambda value: value)
        future = task("start")
        for _ in range(2000):  # would end the recursion's patience, were it one
            future = task(future)
        assert await asyncio.wait_for(future, NEVER) == "start"
        assert len(flow._scheduler.unfinished) == 0
    assert threading.current_thread() not in backend.threads
