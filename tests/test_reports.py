"""Successes worked off by workers: the graph goes on without the loop, futures that are awaited stay the loop's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asyncflow import State, TaskExitError, TaskFuture, WorkerLostError, WorkflowEngine
from asyncflow.backends import Backend, ProcessBackend, ThreadBackend
from asyncflow.backends.contract import Outcome, WorkItem
from asyncflow.errors import ForeignFutureError, FutureNotSettableError
from asyncflow.graph import Phase
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


def ended(future: TaskFuture[Any]) -> bool:
    """Whether its task is DONE, though the loop may not have been told."""
    return future._component.phase is Phase.DONE


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
    hold_loop_until(lambda: ended(futures[-1]))
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
    hold_loop_until(lambda: ended(futures[2]))
    # Its value has gone to the tasks that wait for it; its callbacks have not been called behind the loop's back.
    assert futures[2].result() == 3
    assert ended(futures[0])
    assert not futures[0].done()
    assert called == []
    assert await futures[0] == 1
    assert called == [(futures[0], threading.current_thread())]


async def test_a_call_may_depend_on_what_ended_and_was_not_delivered(flow: WorkflowEngine) -> None:
    [first] = chain(flow, 1)
    first.add_done_callback(lambda _: None)
    await turns()  # handed over, and nothing of the loop comes after that
    hold_loop_until(lambda: ended(first))
    assert not first.done()
    assert await flow.function_task(add)(first) == 2
    assert await flow.function_task(sum)([first, first]) == 2


async def test_what_ended_cannot_be_cancelled_though_it_was_not_delivered(flow: WorkflowEngine) -> None:
    [future] = chain(flow, 1)
    future.add_done_callback(lambda _: None)
    await turns()  # handed over, and nothing of the loop comes after that
    hold_loop_until(lambda: ended(future))
    assert not future.cancel()
    assert await future == 1


async def test_a_drain_waits_for_what_is_not_delivered(flow: WorkflowEngine) -> None:
    [future] = chain(flow, 1)
    future.add_done_callback(lambda _: None)
    await turns()  # handed over, and nothing of the loop comes after that
    hold_loop_until(lambda: ended(future))
    await asyncio.wait_for(flow.drain(), NEVER)
    assert future.done()


async def test_a_shutdown_delivers_what_ended(flow: WorkflowEngine) -> None:
    [future] = chain(flow, 1)
    future.add_done_callback(lambda _: None)
    await turns()  # handed over, and nothing of the loop comes after that
    hold_loop_until(lambda: ended(future))
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


async def test_long_coroutines_hold_up_no_short_ones_though_they_are_most() -> None:
    async with WorkflowEngine.create(ThreadBackend(1, concurrency=4), block_warning=None) as flow:

        @flow.function_task
        async def long() -> None:
            await asyncio.Event().wait()

        @flow.function_task
        async def short(number: int) -> int:
            return number

        held = [long() for _ in range(3)]
        assert await asyncio.wait_for(asyncio.gather(*[short(number) for number in range(10)]), NEVER) == list(
            range(10)
        )
        for future in held:
            future.cancel()


async def test_a_drain_sees_every_last_task() -> None:
    """Also one that ends between its look and its wait."""
    async with WorkflowEngine.create(ThreadBackend(2), block_warning=None) as flow:
        task = flow.function_task(add)
        with forced_batching():
            for _ in range(500):
                for number in range(3):
                    task(number)
                await asyncio.wait_for(flow.drain(), NEVER)


async def test_a_success_reported_during_a_call_that_is_refused_is_not_lost() -> None:
    backend = FakeBackend(workers=2)
    async with WorkflowEngine.create(backend, block_warning=None) as flow:
        future = flow.function_task(add)()
        [item] = await backend.submitted_items(1)
        other_loop = asyncio.new_event_loop()
        foreign = other_loop.create_future()
        with flow._scheduler._mailbox.lock:  # as in the middle of the call
            thread = threading.Thread(target=backend.finish, args=(item, 1))
            thread.start()
            thread.join()
            with pytest.raises(ForeignFutureError):
                flow.function_task(add)(foreign)
        assert await asyncio.wait_for(future, NEVER) == 1
        other_loop.close()


async def test_what_the_engine_lets_go_of_dies_outside_its_lock() -> None:
    held: list[bool] = []
    async with WorkflowEngine.create(ThreadBackend(1), block_warning=None) as flow:
        lock = flow._scheduler._mailbox.lock

        class Argument:
            def __del__(self) -> None:
                held.append(lock._is_owned())  # type: ignore[attr-defined]  # of every RLock, though of no stub

        futures = [flow.function_task(type)(Argument()) for _ in range(10)]
        await turns()
        hold_loop_until(lambda: len(held) == 10)
        assert [await future for future in futures] == [Argument] * 10
    assert not any(held)


async def test_a_future_may_be_cancelled_from_a_destructor_on_any_thread(flow: WorkflowEngine) -> None:
    future = flow.function_task(time.sleep)(0.05)
    last = flow.function_task(add)(future)
    waiting = asyncio.ensure_future(asyncio.wait({last}))
    await turns(2)
    thread = threading.Thread(target=last.cancel)
    thread.start()
    await asyncio.wait_for(waiting, NEVER)
    assert last.cancelled()
    thread.join()


async def test_futures_end_in_the_order_of_their_tasks_whatever_their_ends() -> None:
    def bad(*_: int) -> None:
        raise ValueError("bad")

    async with WorkflowEngine.create(ThreadBackend(1), block_warning=None) as flow:
        order: list[str] = []
        first = flow.function_task(add)()
        second = flow.function_task(bad)(first)
        first.add_done_callback(lambda _: order.append("first"))
        second.add_done_callback(lambda _: order.append("second"))
        await turns()
        hold_loop_until(lambda: bool(flow._scheduler._mailbox._reports))
        assert not first.done()
        assert first.state is State.RUNNING  # what it gives is not there yet
        with pytest.raises(ValueError, match="bad"):
            await second
        assert order == ["first", "second"]


class Exits:
    def __hash__(self) -> int:
        raise SystemExit(3)


async def test_code_of_the_user_that_exits_while_arguments_are_made_fails_its_task_only() -> None:
    async with WorkflowEngine.create(ThreadBackend(1), block_warning=None) as flow:
        made = flow.function_task(Exits)()
        use = flow.function_task(len)({made})
        others = [flow.function_task(add)(number) for number in range(10)]
        with pytest.raises(TaskExitError):
            await asyncio.wait_for(use, NEVER)
        assert await asyncio.wait_for(asyncio.gather(*others), NEVER) == list(range(1, 11))


@pytest.mark.parametrize("nonsense", [bytes(100), b"\0\0\0\1" + (20).to_bytes(8, "big") + b"x" * 20])
async def test_bytes_that_make_no_sense_cost_their_worker_and_no_other(nonsense: bytes) -> None:
    async with WorkflowEngine.create(ProcessBackend(2), block_warning=None) as flow:

        @flow.function_task(max_losses=0)
        def talk(nonsense: bytes) -> None:
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                        os.write(int(name), nonsense)
            threading.Event().wait()

        spoiled = talk(nonsense)
        others = [flow.function_task(add)(number) for number in range(10)]
        assert await asyncio.wait_for(asyncio.gather(*others), NEVER) == list(range(1, 11))
        with pytest.raises(WorkerLostError):
            await asyncio.wait_for(spoiled, NEVER)
        assert await flow.function_task(add)() == 1
