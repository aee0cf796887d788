"""What a type checker sees of tasks, blocks and futures; checked by tests/test_typing.py, and runs as well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from typing_extensions import assert_type

import asyncflow
from asyncflow import State, Task, TaskFuture, WorkflowEngine
from asyncflow.backends import NoopBackend


@asyncflow.function_task
def module_level(number: int) -> int:
    return 2 * number


@asyncflow.function_task(retries=2)
async def module_level_async(number: int) -> str:
    return str(number)


@asyncflow.executable_task
def module_level_command(path: str) -> list[str]:
    return ["true", path]


@asyncflow.block
async def module_level_block(number: int) -> float:
    return float(number)


async def in_an_engine() -> None:
    async with WorkflowEngine.create(backend=NoopBackend()) as flow:
        assert_type(flow, WorkflowEngine)

        @flow.function_task
        def double(number: int) -> int:
            return 2 * number

        @flow.function_task
        async def double_async(number: int) -> int:
            return 2 * number

        @flow.function_task(retries=2, timeout=600, backend="noop", task_description={"ranks": 2})
        def halve(number: int) -> float:
            return number / 2

        @flow.function_task(name="halve", retry_delay=lambda failures: 2.0**failures)
        async def halve_async(number: int) -> float:
            return number / 2

        @flow.function_task()
        def nothing() -> None:
            """Gives None."""

        @flow.executable_task
        async def convert(path: str) -> str:
            return f"gzip -k {path}"

        @flow.executable_task(shell=True, capture_stdio=True, env={"A": "1"}, cwd="/")
        def count(path: str) -> str:
            return f"wc -l < {path}"

        @flow.block
        async def outer(number: int) -> int:
            return await double(number)

        @flow.block(timeout=1.0)
        async def outer_with_options(number: int) -> list[float]:
            return [await halve(number)]

        assert_type(double, Task[int])
        assert_type(double(1), TaskFuture[int])
        assert_type(double_async(1), TaskFuture[int])
        assert_type(halve(1), TaskFuture[float])
        assert_type(halve_async(1), TaskFuture[float])
        assert_type(nothing(), TaskFuture[None])
        assert_type(convert("a"), TaskFuture[str])
        assert_type(count("a"), TaskFuture[str])
        assert_type(outer(1), TaskFuture[int])
        assert_type(outer_with_options(1), TaskFuture[list[float]])
        assert_type(module_level(1), TaskFuture[int])
        assert_type(module_level_async(1), TaskFuture[str])
        assert_type(module_level_command("a"), TaskFuture[str])
        assert_type(module_level_block(1), TaskFuture[float])

        # Futures are arguments as good as values.
        future = double(double(1), workflow_id="wf")
        assert_type(future, TaskFuture[int])
        awaitable: Awaitable[int] = future
        plain: asyncio.Future[int] = future
        assert_type(await future, int)
        assert_type(await asyncio.gather(awaitable, halve(future)), tuple[int, float])
        assert_type(await asyncio.shield(plain), int)
        assert_type(future.state, State)
        assert_type(future.workflow_id, str | None)
        assert_type(flow.components[future.uid].state, State)

        assert_type(await flow.map(halve, range(3)), list[float])
        async for number in flow.map(double_async, [1, 2], window=1):
            assert_type(number, int)


async def in_a_script(flow: WorkflowEngine) -> int:
    return await flow.function_task(int)("1")


if __name__ == "__main__":
    asyncio.run(in_an_engine())
    assert_type(asyncflow.run(in_a_script, backend="threads"), int)
