"""An engine on a `FakeBackend`, and the few words that tests of the engine need to drive it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from asyncflow import TaskFuture, WorkflowEngine
from asyncflow.backends import WorkItem
from asyncflow.testing.fakes import FakeBackend

T = TypeVar("T")

#: Seconds after which a test takes a future for one that never ends. No promise: protection against hanging.
NEVER = 30.0


@asynccontextmanager
async def faked(*, workers: int = 4, **options: Any) -> AsyncIterator[tuple[WorkflowEngine, FakeBackend]]:
    """An engine and its only backend, which runs nothing; what a test leaves unfinished is cancelled."""
    ends_cancelled = options.pop("ends_cancelled", True)
    backend = FakeBackend(workers=workers, ends_cancelled=ends_cancelled)
    flow = await WorkflowEngine.create(backend, **options)
    try:
        yield flow, backend
        flow._scheduler.validate()
    finally:
        await flow.shutdown()


async def turns(count: int = 1) -> None:
    """Let the event loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def soon(awaitable: Awaitable[T]) -> T:
    """Await what must end."""
    return await asyncio.wait_for(awaitable, NEVER)


async def item_of(backend: FakeBackend, future: TaskFuture[Any], attempt: int = 1) -> WorkItem:
    """The unfinished item of a call, as soon as the engine has handed it over."""
    for _ in range(1000):
        for item in backend.items:
            if item.uid == future.uid and item.attempt == attempt:
                return item
        await asyncio.sleep(0)
    raise AssertionError(f"attempt {attempt} of {future!r} was not handed over")


async def finish(backend: FakeBackend, future: TaskFuture[T], value: object = None) -> T:
    """Let a call run and end with `value`; what its future gives."""
    backend.finish(await item_of(backend, future), value)
    return await soon(future)


async def fail(backend: FakeBackend, future: TaskFuture[Any], error: BaseException, attempt: int = 1) -> None:
    """Let an attempt of a call run and end with `error`, and wait until the engine has heard of it."""
    backend.fail(await item_of(backend, future, attempt), error)
    await turns(2)


def identity(value: Any = None, *_: Any, **__: Any) -> Any:
    """A task's function for tests in which no function runs."""
    return value
