"""Blocks: coroutines on the engine's loop that call tasks and other blocks."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from typing import Any

import pytest

from asyncflow import DependencyFailureError, EngineClosedError, State, TaskFuture, TaskTimeoutError, WorkflowEngine
from asyncflow.backends import ThreadBackend
from asyncflow.errors import DrainInsideBlockError
from tests.support.faked import fail, faked, finish, identity, item_of, soon, turns

_colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


async def test_a_block_runs_on_the_engines_loop_in_the_callers_context() -> None:
    async with faked() as (flow, _):

        @flow.block
        async def where() -> tuple[asyncio.AbstractEventLoop, int, str]:
            return asyncio.get_running_loop(), threading.get_ident(), _colour.get()

        token = _colour.set("red")
        future = where()
        _colour.reset(token)
        assert await soon(future) == (asyncio.get_running_loop(), threading.get_ident(), "red")


async def test_blocks_nest_and_are_dependencies_like_any_task() -> None:
    async with WorkflowEngine.create(ThreadBackend(2)) as flow:

        @flow.function_task
        def add(left: int, right: int) -> int:
            return left + right

        @flow.block
        async def total(*numbers: int) -> int:
            if len(numbers) == 1:
                return numbers[0]
            half = len(numbers) // 2
            return await add(total(*numbers[:half]), total(*numbers[half:]))

        assert await soon(add(total(*range(16)), total(1, 2))) == 123


async def test_a_block_waits_for_the_futures_in_its_arguments() -> None:
    async with faked() as (flow, backend):

        @flow.block
        async def outer(values: list[int]) -> list[int]:
            return values

        first = flow.function_task(identity)()
        future = outer([first, 2])
        await turns(3)
        assert future.state is State.PENDING
        await finish(backend, first, 1)
        assert await soon(future) == [1, 2]


async def test_the_end_of_a_block_releases_its_dependents_in_the_same_turn() -> None:
    async with faked() as (flow, backend):
        gate = asyncio.Event()

        @flow.block
        async def outer() -> int:
            await gate.wait()
            return 1

        future = flow.function_task(identity)(outer())
        await turns(3)
        gate.set()
        await turns(2)  # one in which the block goes on, one of ours
        assert [item.uid for item in backend.items] == [future.uid]


if sys.version_info >= (3, 12):

    async def test_a_block_may_run_eagerly() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with faked() as (flow, backend):

            @flow.block
            async def at_once() -> int:
                return 1

            @flow.block
            async def later() -> Any:
                return await flow.function_task(identity)(at_once())

            future = later()
            [item] = await soon(backend.submitted_items(1))
            backend.call(item)
            assert await soon(future) == 1


async def test_states_of_a_block() -> None:
    async with faked() as (flow, _):
        gate = asyncio.Event()

        @flow.block
        async def outer() -> None:
            await gate.wait()

        future = outer()
        seen = [str(future.state)]
        await turns(3)
        seen.append(str(future.state))
        gate.set()
        await soon(future)
        assert [*seen, future.state] == ["PENDING", "RUNNING", "DONE"]
        assert flow.components[future.uid]["type"] == "block"


# --- workflows -------------------------------------------------------------------------------------------------------


async def test_what_a_block_calls_carries_its_workflow_and_its_parent() -> None:
    calls: dict[str, TaskFuture[Any]] = {}
    async with faked() as (flow, _):
        step = flow.function_task(identity)

        @flow.block
        async def inner() -> None:
            calls["inner's"] = step()

        @flow.block
        async def outer() -> None:
            calls["outer's"] = step()
            with flow.workflow_scope("scope"):
                calls["in scope"] = step()
                calls["named"] = step(workflow_id="named")
            calls["inner"] = inner()
            await calls["inner"]

        for workflow in ("wf", None):
            future = outer(workflow_id=workflow)
            await soon(future)
            expected = workflow or future.uid
            assert future.workflow_id == workflow
            assert {name: call.workflow_id for name, call in calls.items()} == {
                "outer's": expected,
                "in scope": "scope",
                "named": "named",
                "inner": expected,
                "inner's": expected,
            }
            parents = {name: flow.components[call.uid].parent for name, call in calls.items()}
            assert parents.pop("inner's") == calls["inner"].uid
            assert set(parents.values()) == {future.uid}
            assert flow.components[calls["named"].uid]["description"]["parent"] == future.uid


async def test_the_scope_of_a_block_ends_with_it() -> None:
    async with faked() as (flow, _):

        @flow.block
        async def outer() -> None:
            """Calls nothing."""

        with flow.workflow_scope("wf"):
            await soon(outer())
            future = flow.function_task(identity)()
        assert (future.workflow_id, flow.components[future.uid].parent) == ("wf", None)


# --- ends ------------------------------------------------------------------------------------------------------------


async def test_a_block_that_raises_fails_with_its_error() -> None:
    async with faked() as (flow, _):

        @flow.block
        async def outer() -> None:
            raise ValueError("from the block")

        future = outer()
        dependent = flow.function_task(identity)(future)
        with pytest.raises(ValueError, match="from the block"):
            await soon(future)
        with pytest.raises(DependencyFailureError, match=r"'outer' .*from the block"):
            await soon(dependent)


async def test_a_failed_task_raises_inside_the_block_which_may_go_on() -> None:
    async with faked() as (flow, backend):
        inner: list[TaskFuture[Any]] = []

        @flow.block
        async def outer() -> str:
            inner.append(flow.function_task(identity)())
            try:
                await inner[0]
            except ValueError:
                return "recovered"
            return "went well"

        future = outer()
        await turns(3)
        await fail(backend, inner[0], ValueError("broken"))
        assert await soon(future) == "recovered"


async def test_a_cancelled_block_ends_when_its_coroutine_has() -> None:
    async with faked() as (flow, backend):
        inner: list[TaskFuture[Any]] = []
        cleaned_up = asyncio.Event()

        @flow.block
        async def outer() -> None:
            inner.append(flow.function_task(identity)())
            try:
                await inner[0]
            finally:
                await cleaned_up.wait()

        future = outer()
        await turns(3)
        item = await item_of(backend, inner[0])
        assert future.cancel()
        await turns(3)
        assert not future.done()
        cleaned_up.set()
        with pytest.raises(asyncio.CancelledError):
            await soon(future)
        assert future.state is State.CANCELLED
        assert inner[0].cancelled(), "what it awaited is cancelled, as everywhere in asyncio"
        assert backend.cancelled == [item]


async def test_a_block_may_refuse_its_cancellation() -> None:
    async with faked() as (flow, _):

        @flow.block
        async def outer() -> str:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                return "still here"
            return "never"

        future = outer()
        await turns(3)
        future.cancel()
        assert await soon(future) == "still here"


@pytest.mark.parametrize("after", range(5))
async def test_a_block_may_be_cancelled_at_any_moment(after: int) -> None:
    async with faked() as (flow, _):
        begun: list[int] = []

        @flow.block
        async def outer() -> None:
            begun.append(after)
            await asyncio.get_running_loop().create_future()

        future = outer()
        await turns(after)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(future)
        await soon(flow.drain())
        assert future.state is State.CANCELLED
        assert len(begun) == (after > 1)
        assert flow._scheduler.out() == 0


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_the_reason_of_a_cancellation_is_kept(after: int) -> None:
    async with faked() as (flow, _):

        @flow.block
        async def outer() -> None:
            await asyncio.get_running_loop().create_future()

        future = outer()
        await turns(after)
        future.cancel("not needed")
        with pytest.raises(asyncio.CancelledError, match="not needed"):
            await soon(future)


async def test_a_block_has_retries() -> None:
    async with faked() as (flow, _):
        attempts: list[int] = []

        @flow.block(retries=2)
        async def outer() -> int:
            attempts.append(len(attempts))
            if len(attempts) < 3:
                raise ValueError("not yet")
            return len(attempts)

        future = outer()
        assert await soon(future) == 3
        assert flow.components[future.uid].attempt == 3


async def test_a_block_has_a_timeout() -> None:
    async with faked() as (flow, _):

        @flow.block(timeout=0.01)
        async def outer() -> None:
            await asyncio.get_running_loop().create_future()

        with pytest.raises(TaskTimeoutError, match="'outer' ran longer than its timeout"):
            await soon(outer())


async def test_a_block_of_a_closed_engine_calls_nothing_more() -> None:
    async with faked() as (flow, _):
        refused: list[BaseException] = []

        @flow.block
        async def outer() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                try:
                    flow.function_task(identity)()
                except EngineClosedError as error:
                    refused.append(error)

        future = outer()
        await turns(3)
        await flow.shutdown()
        assert future.cancelled()
        assert len(refused) == 1


async def test_a_block_may_shut_its_engine_down() -> None:
    async with faked() as (flow, _):

        @flow.block
        async def last() -> None:
            await flow.shutdown()

        future = last()
        await soon(asyncio.wait([future]))
        await flow.shutdown()
        assert future.done()


async def test_a_thousand_blocks_wait_at_once() -> None:
    async with faked() as (flow, _):
        barrier = asyncio.Event()
        waiting = 0

        @flow.block
        async def meet() -> None:
            nonlocal waiting
            waiting += 1
            if waiting == 1000:
                barrier.set()
            await barrier.wait()

        await soon(asyncio.gather(*(meet() for _ in range(1000))))


async def test_a_block_left_running_is_named_at_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    release = asyncio.Event()
    async with faked() as (flow, _):

        @flow.block
        async def stubborn() -> None:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

        future = stubborn()
        await turns(3)
        await flow.shutdown(grace=0.01)
        assert future.cancelled()
        assert f"stubborn ({future.uid}) did not end within 0.01 s of being cancelled" in caplog.text
        release.set()
        await turns(3)


async def test_a_block_that_drains_its_engine_is_told_that_it_would_wait_for_itself() -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:

        @flow.block
        async def drains() -> None:
            await flow.drain()

        with pytest.raises(DrainInsideBlockError, match=r"inside block\.000001"):
            await soon(drains())
