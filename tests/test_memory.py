"""Memory: what the engine keeps, for how long, and how much of it."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncflow import TaskFuture, WorkflowEngine
from asyncflow.backends import NoopBackend, ThreadBackend
from asyncflow.component import Component
from tests.support import module_tasks
from tests.support.faked import fail, faked, finish, identity, item_of, soon, turns


class Thing:
    """Something whose end can be watched."""


async def _finish(future: TaskFuture[Any], backend: Any) -> None:
    await finish(backend, future)


async def _fail(future: TaskFuture[Any], backend: Any) -> None:
    await fail(backend, future, ValueError("broken"))
    assert future.exception() is not None


async def _cancel(future: TaskFuture[Any], backend: Any) -> None:
    await item_of(backend, future)
    future.cancel()
    await turns(2)


@pytest.mark.parametrize("end", [_finish, _fail, _cancel])
async def test_arguments_are_dropped_when_the_task_has_ended(end: Callable[..., Any]) -> None:
    async with faked() as (flow, backend):
        thing, nested = Thing(), Thing()
        gone = [weakref.ref(thing), weakref.ref(nested)]
        future = flow.function_task(identity)(thing, key=[nested])
        del thing, nested
        await end(future, backend)
        gc.collect()
        assert [ref() for ref in gone] == [None, None]
        assert future.done()


async def test_arguments_of_what_never_ran_are_dropped_too() -> None:
    async with faked() as (flow, backend):
        first = flow.function_task(identity)()
        thing = Thing()
        gone = weakref.ref(thing)
        second = flow.function_task(identity)(first, thing)
        del thing
        await fail(backend, first, ValueError("broken"))
        assert (first.exception(), second.exception()) != (None, None)
        gc.collect()
        assert gone() is None


async def test_a_result_lives_in_its_future_only() -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        make = flow.function_task(Thing)
        future = make()
        gone = weakref.ref(await soon(future))
        assert gone() is future.result()
        del future
        await soon(make())  # the worker lets go of a task when it takes the next
        gc.collect()
        assert gone() is None


async def test_a_result_that_was_passed_on_is_let_go_with_the_last_dependent() -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        first = flow.function_task(Thing)()
        second = flow.function_task(id)(first)
        gone = weakref.ref(await soon(first))
        await soon(second)
        del first
        await soon(flow.function_task(identity)())
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("end", [_finish, _fail, _cancel])
async def test_the_engine_lets_go_of_a_future_whose_task_has_ended(end: Callable[..., Any]) -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(identity)()
        uid, gone = future.uid, weakref.ref(future)
        await end(future, backend)
        del future
        await turns(2)  # the step of this test that the future itself woke is over
        gc.collect()
        assert gone() is None
        assert flow.components[uid].name == "identity", "history remembers it"


async def test_an_unfinished_task_is_kept_though_nobody_holds_its_future() -> None:
    results: list[int] = []
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        for number in range(100):
            flow.function_task(results.append)(number)
        gc.collect()
    assert results == list(range(100))


async def test_a_task_is_kept_while_its_calls_are_unfinished() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(name="short-lived")(lambda: 5)()
        gc.collect()
        backend.call(await item_of(backend, future))
        assert await soon(future) == 5


async def test_history_is_bounded() -> None:
    async with faked(history=3) as (flow, backend):
        futures = [flow.function_task(identity)() for _ in range(5)]
        for future in futures:
            await finish(backend, future)
        assert list(flow.components) == [future.uid for future in futures[2:]]
        assert futures[0].uid not in flow.components
        assert futures[0].state == "DONE", "the user's own future remembers"


async def test_without_history_components_holds_the_unfinished_only() -> None:
    async with faked(history=0) as (flow, backend):
        done, pending = flow.function_task(identity)(), flow.function_task(identity)()
        await finish(backend, done)
        assert list(flow.components) == [pending.uid]
        await finish(backend, pending)
        assert len(flow.components) == 0


def _components() -> int:
    gc.collect()
    return sum(type(thing) is Component for thing in gc.get_objects())


async def test_what_is_cancelled_while_it_waits_for_its_retry_is_let_go() -> None:
    async with faked(history=0) as (flow, backend):
        before = _components()
        future = flow.function_task(retries=1, retry_delay=3600.0)(identity)()
        await fail(backend, future, ValueError("broken"))
        assert future.cancel()
        del future
        backend.submitted.clear()
        assert _components() == before


async def test_nothing_grows_with_the_number_of_tasks() -> None:
    async with WorkflowEngine.create(NoopBackend(), history=100) as flow:
        step = flow.function_task(identity)

        async def burst() -> None:
            first = step()
            await asyncio.gather(*(step(first, step(number)) for number in range(500)))

        await burst()
        before = _components()
        tracemalloc.start()
        try:
            await burst()
            gc.collect()
            size = tracemalloc.get_traced_memory()[0]
            for _ in range(5):
                await burst()
            gc.collect()
            growth = tracemalloc.get_traced_memory()[0] - size
        finally:
            tracemalloc.stop()
        assert _components() == before
        assert growth < 5000, "5,000 tasks later"
        assert flow._scheduler.out() == 0


@pytest.mark.parametrize("shape", ["independent", "chain", "fan-in"])
async def test_a_pending_task_takes_less_than_a_kibibyte(shape: str) -> None:
    count = 20_000
    async with faked() as (flow, _):
        step = flow.function_task(identity)
        gate: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        futures = [step(gate)]
        await turns(2)
        gc.collect()
        tracemalloc.start()
        try:
            for number in range(count):
                if shape == "independent":
                    futures.append(step(number))
                elif shape == "chain":
                    futures.append(step(futures[-1]))
                else:
                    futures.append(step(futures[0]))
            size = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert len(flow.components) == count + 1
        assert size / count < 1024


@pytest.mark.parametrize("module_level", [False, True])
async def test_a_closed_engine_is_let_go(module_level: bool) -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        gone = weakref.ref(flow)
        task = module_tasks.double if module_level else flow.function_task(module_tasks.double.fn)
        assert await soon(task(2)) == 4
        if not module_level:
            del task
    del flow
    await turns(2)
    gc.collect()
    assert gone() is None


async def test_a_failure_in_a_chain_costs_each_dependent_little() -> None:
    async with faked(history=0) as (flow, backend):
        step = flow.function_task(identity)
        futures = [step()]
        for _ in range(1000):
            futures.append(step(futures[-1]))
        await fail(backend, futures[0], ValueError("broken"))
        errors = [future.exception() for future in futures]
        assert len(pickle.dumps(str(errors[-1]))) < 1000
        assert len(getattr(errors[-1], "chain", ())) <= 6


def _resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.soak
async def test_a_million_pending_tasks_fit() -> None:
    count = 1_000_000
    async with faked() as (flow, _):
        step = flow.function_task(identity)
        gate: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        before = _resident()
        futures = [step(gate) for _ in range(count)]
        assert (_resident() - before) / count < 1024
        gate.cancel()
        await turns(2)
        assert all(future.cancelled() for future in futures)


@pytest.mark.soak
async def test_a_million_tasks_leave_no_memory_behind() -> None:
    async with WorkflowEngine.create(NoopBackend(), history=100) as flow:
        step = flow.function_task(identity)
        for number in range(11):
            async for _ in flow.map(step, range(100_000)):
                pass
            if number == 0:
                gc.collect()
                before = _resident()
        gc.collect()
        assert _resident() - before < 20_000_000
